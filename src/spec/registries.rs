//! K3s' registries.yaml: whether K3s reads it as it was meant.
//!
//! The keys are those of `Registry` in github.com/rancher/wharfie (pkg/registries/types.go), which K3s reads the file by. It does not start
//! with a value of another type, and passes over keys that it does not know: both are mistakes here.

use super::yaml::{self, Node, Problem, Value};

/// What a value is to be.
enum Shape {
    /// A string; numbers and booleans are read as one.
    Text,
    /// `true` or `false`.
    Bool,
    /// A list of texts.
    Texts,
    /// A table whose keys are free.
    Table(&'static Shape),
    /// A table with these keys.
    Keys(&'static [(&'static str, Shape)]),
}

const AUTH: Shape = Shape::Keys(&[
    ("username", Shape::Text),
    ("password", Shape::Text),
    ("auth", Shape::Text),
    ("identity_token", Shape::Text),
]);
const FILE: Shape = Shape::Keys(&[
    (
        "mirrors",
        Shape::Table(&Shape::Keys(&[("endpoint", Shape::Texts), ("rewrite", Shape::Table(&Shape::Text))])),
    ),
    (
        "configs",
        Shape::Table(&Shape::Keys(&[
            ("auth", AUTH),
            (
                "tls",
                Shape::Keys(&[
                    ("ca_file", Shape::Text),
                    ("cert_file", Shape::Text),
                    ("key_file", Shape::Text),
                    ("insecure_skip_verify", Shape::Bool),
                ]),
            ),
        ])),
    ),
    ("auths", Shape::Table(&AUTH)),
]);

/// Checks the bytes of a registries.yaml.
///
/// # Errors
/// The first mistake with its place. It says no value of the file, since they may be secret.
pub fn check(bytes: &[u8]) -> Result<(), Problem> {
    let file = yaml::read(bytes)?;
    fits(&file, &FILE, "the file")?;
    for (name, mirror) in entries(&file, "mirrors") {
        host(name)?;
        let Some(Value::List(endpoints)) = mirror.get("endpoint").map(|node| &node.value) else { continue };
        for endpoint in endpoints {
            url(endpoint)?;
        }
    }
    for (name, config) in entries(&file, "configs") {
        host(name)?;
        if let Some(auth) = config.get("auth") {
            basic(auth)?;
        }
        let tls = config.get("tls");
        let has = |key: &str| tls.and_then(|tls| tls.get(key)).filter(|node| node.scalar().is_some());
        if let (Some(one), None) | (None, Some(one)) = (has("cert_file"), has("key_file")) {
            return Err(one.problem("`cert_file` and `key_file` go together, and one of them is missing"));
        }
    }
    for (_, auth) in entries(&file, "auths") {
        basic(auth)?;
    }
    Ok(())
}

/// The entries of a table of the file.
fn entries<'n>(file: &'n Node, key: &str) -> impl Iterator<Item = (&'n Node, &'n Node)> {
    let pairs = match file.get(key).map(|node| &node.value) {
        Some(Value::Map(pairs)) => pairs.as_slice(),
        _ => &[],
    };
    pairs.iter().map(|(name, value)| (name, value))
}

/// Whether `node`, the value of `what`, has a shape. What is left empty is as good as left out.
fn fits(node: &Node, shape: &Shape, what: &str) -> Result<(), Problem> {
    let refuse = |wanted: &str| Err(node.problem(format!("{what} is {}, and must be {wanted}", node.kind())));
    if node.value == Value::Null {
        return Ok(());
    }
    match (shape, &node.value) {
        (Shape::Text, _) if node.scalar().is_some() => Ok(()),
        (Shape::Text, _) => refuse("a text"),
        (Shape::Bool, Value::Bool(..)) => Ok(()),
        (Shape::Bool, _) => refuse("true or false, without quotes"),
        (Shape::Texts, Value::List(items)) => items.iter().try_for_each(|item| match item.scalar() {
            Some(_) => Ok(()),
            None => Err(item.problem(format!("an item of {what} is {}, and must be a text", item.kind()))),
        }),
        (Shape::Texts, _) => refuse("a list, each item in a line with `- ` in front"),
        (Shape::Table(inner), Value::Map(pairs)) => {
            pairs.iter().try_for_each(|(_, value)| fits(value, inner, &format!("an entry of {what}")))
        }
        (Shape::Keys(known), Value::Map(pairs)) => {
            for (key, value) in pairs {
                let name = key.scalar().unwrap_or_default();
                let Some((known, inner)) = known.iter().find(|(known, _)| *known == name) else {
                    let all: Vec<&str> = known.iter().map(|(known, _)| *known).collect();
                    let near = super::nearest(name, all.iter().copied());
                    let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
                    let text = format!(
                        "{what} has a key that K3s does not know, and would pass over: {near}known are {}",
                        all.join(", ")
                    );
                    return Err(key.problem(text));
                };
                fits(value, inner, &format!("`{known}`"))?;
            }
            Ok(())
        }
        (Shape::Table(_) | Shape::Keys(_), _) => refuse("a table of keys and values"),
    }
}

/// The name of a registry: images have no more of it in front of them than host and port.
fn host(key: &Node) -> Result<(), Problem> {
    let name = key.scalar().unwrap_or_default();
    if name.contains("://") {
        return Err(key.problem(
            "a registry is named by a URL, and no image is: write host and port alone, such as docker.io",
        ));
    }
    if name.is_empty() || name.contains(|c: char| c == '/' || c.is_whitespace()) {
        return Err(
            key.problem("a registry is named by host and port alone, such as docker.io or registry.lan:5000")
        );
    }
    Ok(())
}

/// Where a mirror is.
fn url(endpoint: &Node) -> Result<(), Problem> {
    let text = endpoint.scalar().unwrap_or_default();
    let rest = match text.split_once("://") {
        Some(("http" | "https", rest)) => rest,
        Some(_) => return Err(endpoint.problem("an endpoint begins with neither https:// nor http://")),
        None => text,
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    let port = match host.rsplit_once(':') {
        Some((_, port)) if !host.ends_with(']') => port.parse::<u16>().is_ok(),
        _ => true,
    };
    if host.is_empty() || host.starts_with(':') || !port || text.contains(char::is_whitespace) {
        return Err(endpoint.problem("an endpoint is not a URL such as https://registry.lan:5000"));
    }
    Ok(())
}

/// `auth` is `user:password` in base64, which containerd reads when it pulls an image.
fn basic(auth: &Node) -> Result<(), Problem> {
    use base64::Engine as _;
    let Some(node) = auth.get("auth") else { return Ok(()) };
    let Some(text) = node.scalar().filter(|text| !text.is_empty()) else { return Ok(()) };
    let decoded = base64::engine::general_purpose::STANDARD.decode(text.trim_end_matches('\0'));
    match decoded {
        Ok(bytes) if bytes.contains(&b':') => Ok(()),
        _ => Err(node.problem(
            "`auth` is not `user:password` in base64: write `username` and `password` in its place",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_k3s_reads_is_taken() {
        for text in [
            "",
            "# nothing yet\n",
            "mirrors:\n",
            "mirrors:\n  docker.io:\n    endpoint:\n      - \"https://registry.lan:5000\"\n      - registry.lan\n      - https://[fd00::1]:5000/v2\n    rewrite:\n      \"^rancher/(.*)\": \"mirror/$1\"\n  \"*\":\n",
            "configs:\n  registry.lan:5000:\n    auth: {username: me, password: 1234}\n    tls:\n      ca_file: /etc/ca.pem\n      insecure_skip_verify: yes\n",
            "configs: {\"registry.lan\": {\"auth\": {\"auth\": \"bWU6c2VzYW1l\"}, \"tls\": {\"cert_file\": \"/c\", \"key_file\": \"/k\"}}}",
            "auths:\n  registry.lan:\n    identity_token: x\r\n",
        ] {
            assert_eq!(check(text.as_bytes()), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_k3s_refuses_or_passes_over_is_told_with_its_line_and_nothing_of_its_text() {
        for (text, place, words) in [
            ("sesame", "line 1", "the file is a text"),
            ("- sesame\n", "line 1", "the file is a list"),
            (
                "mirrors:\n  docker.io:\n    endpoint: sesame\n",
                "line 3",
                "`endpoint` is a text, and must be a list",
            ),
            ("mirrors:\n  docker.io:\n    endpoints: [sesame]\n", "line 3", "did you mean `endpoint`?"),
            ("mirror:\n  sesame: {}\n", "line 1", "did you mean `mirrors`?"),
            ("sesame: 1\n", "line 1", "known are mirrors, configs, auths"),
            ("mirrors:\n- sesame\n", "line 2", "`mirrors` is a list"),
            ("mirrors:\n  https://sesame: {}\n", "line 2", "named by a URL"),
            ("mirrors:\n  sesame/library: {}\n", "line 2", "host and port alone"),
            ("mirrors:\n  a:\n    endpoint: [\"ftp://sesame\"]\n", "line 3", "https://"),
            ("mirrors:\n  a:\n    endpoint: [\"https://\"]\n", "line 3", "not a URL"),
            ("mirrors:\n  a:\n    endpoint: [\"https://sesame:x\"]\n", "line 3", "not a URL"),
            ("mirrors:\n  a:\n    endpoint: [{b: sesame}]\n", "line 3", "an item of `endpoint`"),
            ("configs:\n  a:\n    auth: sesame\n", "line 3", "`auth` is a text"),
            ("configs:\n  a:\n    auth:\n      user: sesame\n", "line 4", "did you mean `username`?"),
            ("configs:\n  a:\n    auth:\n      password: [sesame]\n", "line 4", "`password` is a list"),
            ("configs:\n  a:\n    auth:\n      auth: sesame\n", "line 4", "in base64"),
            ("configs:\n  a:\n    tls:\n      insecure_skip_verify: \"true\"\n", "line 4", "without quotes"),
            ("configs:\n  a:\n    tls:\n      cert_file: sesame\n", "line 4", "go together"),
            ("configs:\n  a:\n    password: sesame\n", "line 3", "known are auth, tls"),
            ("configs:\n  a:\n    auth:\n      password: p: sesame\n", "line 4", "quotes"),
            ("configs:\n  a: {}\n  a: {}\n", "line 3", "there already"),
        ] {
            let why = check(text.as_bytes()).expect_err(text).to_string();
            assert!(why.contains(place) && why.contains(words) && !why.contains("sesame"), "{text}: {why}");
        }
    }
}
