//! Checks of what files need from each other: interpreters, libraries, link targets.

use super::{Found, Look, globs};
use crate::rootfs::alternatives;
use crate::rootfs::elf::{Elf, Priority, shebang};
use crate::rootfs::step::StepError;
use crate::tree::{Kind, TreePath};

/// Folders that a shell and systemd search for programs.
pub(super) const PATH: [&str; 4] = ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin"];
/// Targets that exist only on a running system, as the first component of an absolute path.
const RUNTIME: [&str; 6] = ["run", "proc", "sys", "dev", "tmp", "var"];
/// Links that lead nowhere on an installed Debian as well: build trees of kernels.
const USUAL: [&str; 2] = ["/usr/lib/modules/*/build", "/usr/lib/modules/*/source"];
/// What is only read by people; nothing here is run by the system.
const DOCUMENTS: [&str; 5] = [
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/locale/",
    "usr/share/info/",
    "usr/share/bash-completion/",
];

fn is_document(path: &str) -> bool {
    DOCUMENTS.iter().any(|d| path.starts_with(d)) || path.contains("/examples/")
}

/// The ELF files of the image's architecture.
fn programs<'a>(look: &'a Look<'_>) -> impl Iterator<Item = (&'a TreePath, &'a Elf)> {
    look.tree.iter().filter_map(|(path, entry)| {
        let elf = look.facts.get(&entry.content()?.digest())?;
        (elf.machine == look.loader.machine).then_some((path, elf))
    })
}

pub(super) fn interpreters(look: &Look<'_>) -> Result<Vec<Found>, StepError> {
    let allowed = globs(look.allow.interpreters.iter().map(String::as_str));
    let mut found = Vec::new();
    for (path, elf) in programs(look) {
        if let Some(loader) = &elf.interpreter
            && look.tree.follow(loader).is_none()
            && !allowed.is_match(format!("/{path}"))
        {
            found.push(Found::new(
                path,
                format!("its loader {loader} is missing"),
                "add the C library it was built for",
            ));
        }
    }
    for (path, entry) in look.tree.iter() {
        let Some(content) = entry.content() else { continue };
        if entry.meta.mode & 0o111 == 0
            || content.size() < 4
            || look.facts.contains_key(&content.digest())
            || is_document(path)
        {
            continue;
        }
        let mut head = vec![0; usize::try_from(content.size()).unwrap_or(usize::MAX).min(256)];
        content
            .read_exact_at(&mut head, 0)
            .map_err(|source| StepError::Read { path: path.clone(), source })?;
        let Some(line) = shebang(&head) else { continue };
        if allowed.is_match(format!("/{path}")) {
            continue;
        }
        // Linux takes the CR for a part of the name, or of the argument.
        if head.split(|byte| *byte == b'\n').next().is_some_and(|line| line.ends_with(b"\r")) {
            let text = "it is a script whose first line ends with CR LF: Linux looks for an interpreter whose name ends with CR";
            let remedy = "write the file with LF as its line end (`sed -i 's/\\r$//' FILE`)";
            found.push(Found::new(path, text.to_owned(), remedy));
            continue;
        }
        let program = line.program();
        if !runs(look, program) {
            let remedy = "add the package of the interpreter, or name the script in `allow.interpreters`";
            found.push(Found::new(path, format!("its interpreter {program} is missing"), remedy));
        }
    }
    Ok(found)
}

/// Whether `program`, a path or a name to be searched, leads to a file.
pub(super) fn runs(look: &Look<'_>, program: &str) -> bool {
    if program.contains('/') {
        look.tree.follow(program).is_some()
    } else {
        PATH.iter().any(|dir| look.tree.follow(&format!("{dir}/{program}")).is_some())
    }
}

/// Whether the loader finds `soname` for the file at `path`. A library in the file's own folder counts as found: what sits in private
/// folders (plug-ins and what they share) is loaded by a program that knows the folder.
fn finds(look: &Look<'_>, path: &TreePath, elf: &Elf, soname: &str) -> bool {
    if soname.contains('/') {
        return look.tree.follow(soname).is_some();
    }
    let origin = format!("/{}", path.parent().unwrap_or_default());
    let own = elf
        .rpath
        .iter()
        .chain(&elf.runpath)
        .map(|dir| dir.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin).replace("$LIB", "lib"));
    own.chain(look.library_dirs.iter().cloned()).chain([origin.clone()]).any(|dir| {
        let Some((_, entry)) = look.tree.follow(&format!("{dir}/{soname}")) else { return false };
        let other = entry.content().and_then(|c| look.facts.get(&c.digest()));
        other.is_some_and(|o| o.machine == elf.machine)
    })
}

pub(super) fn libraries(look: &Look<'_>) -> Result<Vec<Found>, StepError> {
    let mut found = Vec::new();
    for (path, elf) in programs(look) {
        for soname in &elf.needed {
            if !look.allow.libraries.contains(soname) && !finds(look, path, elf, soname) {
                let remedy = "add the package that has the library, or name it in `allow.libraries`";
                found.push(Found::new(path, format!("it needs library {soname}, which is missing"), remedy));
            }
        }
    }
    Ok(found)
}

pub(super) fn dlopened(look: &Look<'_>) -> Result<Vec<Found>, StepError> {
    let mut found = Vec::new();
    for (path, elf) in programs(look) {
        for note in &elf.dlopen {
            if note.soname.iter().any(|s| look.allow.dlopen.contains(s) || finds(look, path, elf, s)) {
                continue;
            }
            let (word, note_only) = match note.priority {
                Priority::Required => ("requires", false),
                Priority::Recommended => ("recommends", false),
                Priority::Suggested => ("suggests", true),
            };
            let what = if note.description.is_empty() { &note.feature } else { &note.description };
            let text =
                format!("it {word} {} at run time ({what}), which is missing", note.soname.join(" or "));
            let remedy = "add the package that has the library, or name it in `allow.dlopen`";
            found.push(Found::new(path, text, remedy).note_if(note_only));
        }
    }
    Ok(found)
}

pub(super) fn dangling(look: &Look<'_>) -> Result<Vec<Found>, StepError> {
    let allowed = globs(look.allow.dangling.iter().map(String::as_str).chain(USUAL));
    let mut found = Vec::new();
    for (path, entry) in look.tree.iter() {
        let Kind::Symlink { target } = &entry.kind else { continue };
        let resolved = look.tree.resolve(path);
        let there = matches!(&resolved, Ok(Some(_))) || target == "/";
        if there
            || target.starts_with("/etc/alternatives/")
            || made_later(look, path, target)
            || allowed.is_match(format!("/{path}"))
        {
            continue;
        }
        // Links among units are the business of the unit checks.
        if path.starts_with("etc/systemd/system/") {
            continue;
        }
        let text = match resolved {
            Err(_) => format!("the link to {target} goes round in a circle"),
            _ => format!("the link to {target} leads nowhere"),
        };
        let remedy = "add the package that has the target, remove the link, or name it in `allow.dangling`";
        found.push(Found::new(path, text, remedy).note_if(is_document(path)));
    }
    Ok(found)
}

/// Whether the target of a link lies where files appear at run time.
fn made_later(look: &Look<'_>, path: &TreePath, target: &str) -> bool {
    let absolute = match target.strip_prefix('/') {
        Some(rest) => rest.to_owned(),
        None => {
            let mut parts: Vec<&str> = path.parent().unwrap_or_default().split('/').collect();
            for part in target.split('/') {
                match part {
                    ".." => drop(parts.pop()),
                    "." | "" => {}
                    part => parts.push(part),
                }
            }
            parts.join("/")
        }
    };
    let first = absolute.trim_start_matches('/').split('/').next().unwrap_or_default();
    if RUNTIME.contains(&first) {
        return true;
    }
    // A link to a link that leaves for /run is as good as the second one.
    match look.tree.get(&absolute).map(|e| &e.kind) {
        Some(Kind::Symlink { target }) => {
            let first = target.trim_start_matches('/').split('/').next().unwrap_or_default();
            target.starts_with('/') && RUNTIME.contains(&first)
        }
        _ => false,
    }
}

pub(super) fn alternatives(look: &Look<'_>) -> Result<Vec<Found>, StepError> {
    let unset = alternatives::unset(look.tree).into_iter().map(|(path, name)| {
        let remedy = format!("add `{name}` to the table of alternatives");
        Found::new(&path, format!("no alternative `{name}` is set"), remedy).note_if(is_document(&path))
    });
    Ok(unset.collect())
}
