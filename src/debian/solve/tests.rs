use super::*;
use crate::debian::index;

/// A universe from short lines: `name version; Field: value; …`, a suite per slice.
fn universe(suites: &[(&str, &[&str])]) -> Universe {
    let mut universe = Universe::new("amd64");
    for (suite, lines) in suites {
        let mut text = String::new();
        for line in *lines {
            let mut parts = line.split("; ");
            let (name, version) = parts.next().unwrap().split_once(' ').unwrap();
            text += &format!(
                "Package: {name}\nVersion: {version}\nFilename: pool/{name}.deb\nSize: 1\nSHA256: {}\n",
                "0".repeat(64)
            );
            let mut arch = "amd64";
            for field in parts {
                match field.strip_prefix("Architecture: ") {
                    Some(other) => arch = other,
                    None => text += &format!("{field}\n"),
                }
            }
            text += &format!("Architecture: {arch}\n\n");
        }
        universe.add(suite, index::parse(text.as_bytes(), |_, _| true).unwrap().records).unwrap();
    }
    universe
}

fn wanting(names: &[&str]) -> Request {
    let wanted =
        names.iter().map(|n| Wanted { name: (*n).to_owned(), because: "images/node.toml".to_owned() });
    Request { wanted: wanted.collect(), ..Request::default() }
}

/// `name=version` of everything in the solution.
fn solved(universe: &Universe, request: &Request) -> Vec<String> {
    let solution = solve(universe, request).unwrap_or_else(|e| panic!("{e}"));
    solution.packages.values().map(|c| format!("{}={}", c.record.name, c.record.version)).collect()
}

fn trixie(lines: &[&str]) -> Universe {
    universe(&[("trixie", lines)])
}

#[test]
fn takes_the_closure_of_depends_and_pre_depends_with_the_roots() {
    let universe = trixie(&[
        "app 1; Depends: liba (>= 1), libb:any; Pre-Depends: pre",
        "liba 1",
        "libb 2; Architecture: all",
        "pre 1; Depends: liba",
        "idle 1",
        "dash 1; Essential: yes; Depends: libc",
        "libc 1",
        "login 1; Priority: required",
        "foreign 1; Architecture: s390x",
    ]);
    assert_eq!(
        solved(&universe, &wanting(&["app"])),
        ["app=1", "dash=1", "liba=1", "libb=2", "libc=1", "login=1", "pre=1"]
    );
    assert_eq!(solved(&universe, &wanting(&[])), ["dash=1", "libc=1", "login=1"]);
    assert_eq!(universe.len(), 8, "packages of other architectures are no candidates");
}

#[test]
fn the_first_alternative_is_taken_unless_another_is_needed_anyway() {
    let lines = ["app 1; Depends: xx | yy", "xx 1", "yy 1", "other 1; Depends: yy"];
    assert_eq!(solved(&trixie(&lines), &wanting(&["app"])), ["app=1", "xx=1"]);
    assert_eq!(solved(&trixie(&lines), &wanting(&["app", "other"])), ["app=1", "other=1", "yy=1"]);
    assert_eq!(solved(&trixie(&lines), &wanting(&["app", "yy"])), ["app=1", "yy=1"]);
}

#[test]
fn an_essential_provider_is_preferred_to_a_new_package() {
    // The case of lsb-base, which Essential sysvinit-utils provides in trixie.
    let universe = trixie(&[
        "app 1; Depends: lsb-base (>= 3)",
        "lsb-base 11",
        "sysvinit-utils 3; Essential: yes; Provides: lsb-base (= 11.6)",
    ]);
    assert_eq!(solved(&universe, &wanting(&["app"])), ["app=1", "sysvinit-utils=3"]);
}

#[test]
fn a_package_that_is_not_needed_does_not_hold_others_back() {
    // `xx` would be dropped in the end, but by then `lib` would have been chosen to fit it.
    let universe = trixie(&[
        "app 1; Depends: xx | dash (>= 3), middle",
        "middle 2; Depends: lib",
        "middle 1; Depends: lib",
        "dash 3; Essential: yes",
        "dash 2; Essential: yes",
        "dash 1; Essential: yes",
        "xx 1; Depends: lib (<< 2)",
        "lib 2",
        "lib 1",
    ]);
    assert_eq!(solved(&universe, &wanting(&["app"])), ["app=1", "dash=3", "lib=2", "middle=2"]);
}

#[test]
fn a_real_package_goes_before_providers_and_a_version_needs_a_versioned_provides() {
    let universe = trixie(&[
        "aa 1; Depends: mta",
        "bb 1; Depends: mta (>= 2)",
        "exim 1; Provides: mta",
        "postfix 1; Provides: mta (= 2)",
    ]);
    assert_eq!(solved(&universe, &wanting(&["aa"])), ["aa=1", "exim=1"]);
    assert_eq!(solved(&universe, &wanting(&["bb"])), ["bb=1", "postfix=1"]);
    assert_eq!(solved(&universe, &wanting(&["aa", "bb"])), ["aa=1", "bb=1", "postfix=1"]);
    assert_eq!(solved(&universe, &wanting(&["mta"])), ["exim=1"]);
}

#[test]
fn conflicts_and_breaks_choose_another_alternative_or_version() {
    let universe = trixie(&[
        "app 1; Depends: xx | yy; Conflicts: virt",
        "xx 1; Provides: virt",
        "yy 1",
        "new 1; Breaks: lib (>= 2)",
        "lib 2",
        "lib 1",
        "self 1; Provides: mta; Conflicts: mta",
    ]);
    assert_eq!(solved(&universe, &wanting(&["app"])), ["app=1", "yy=1"]);
    assert_eq!(solved(&universe, &wanting(&["new", "lib"])), ["lib=1", "new=1"]);
    assert_eq!(solved(&universe, &wanting(&["lib"])), ["lib=2"]);
    assert_eq!(solved(&universe, &wanting(&["self"])), ["self=1"]);
}

#[test]
fn the_newest_version_wins_and_equal_ones_go_by_the_order_of_suites() {
    let universe = universe(&[("security", &["aa 2", "bb 1"]), ("trixie", &["aa 2", "bb 2", "cc 1.0"])]);
    let solution = solve(&universe, &wanting(&["aa", "bb", "cc"])).unwrap();
    let from =
        |n: &str| (solution.packages[n].suite.to_string(), solution.packages[n].record.version.to_string());
    assert_eq!(from("aa"), ("security".to_owned(), "2".to_owned()));
    assert_eq!(from("bb"), ("trixie".to_owned(), "2".to_owned()));
    assert_eq!(from("cc"), ("trixie".to_owned(), "1.0".to_owned()));
}

#[test]
fn kept_versions_stay_while_they_exist_and_fit() {
    let universe =
        trixie(&["aa 2; Depends: bb", "aa 1; Depends: bb", "bb 3", "bb 2", "cc 1; Depends: bb (>= 3)"]);
    let keep =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(n, v)| ((*n).to_owned(), v.parse().unwrap())).collect();
    let kept = Request { keep: keep(&[("bb", "2"), ("aa", "0.9")]), ..wanting(&["aa"]) };
    assert_eq!(solved(&universe, &kept), ["aa=2", "bb=2"]);
    let kept = Request { keep: keep(&[("bb", "2")]), ..wanting(&["aa", "cc"]) };
    assert_eq!(solved(&universe, &kept), ["aa=2", "bb=3", "cc=1"]);
}

#[test]
fn excluded_and_provided_names_waive_what_only_they_satisfy() {
    let universe = trixie(&[
        "linux 6; Depends: initramfs-tools | linux-initramfs-tool, kmod, busybox",
        "initramfs-tools 1",
        "dracut 1; Provides: linux-initramfs-tool",
        "kmod 1",
        "busybox 1",
    ]);
    let request = Request {
        provided: vec![Provided { name: "linux-initramfs-tool".to_owned(), version: None }],
        without: BTreeSet::from(["initramfs-tools".to_owned(), "busybox".to_owned()]),
        ..wanting(&["linux"])
    };
    assert_eq!(solved(&universe, &request), ["kmod=1", "linux=6"]);
    let waived = solve(&universe, &request).unwrap().waived;
    let texts: Vec<(&str, Option<&str>)> =
        waived.iter().map(|w| (w.relation.as_str(), w.provided.as_deref())).collect();
    assert_eq!(
        texts,
        [("busybox", None), ("initramfs-tools | linux-initramfs-tool", Some("linux-initramfs-tool")),]
    );
    // Without the provided name the excluded first alternative gives way to the second.
    let request = Request { provided: Vec::new(), ..request };
    assert_eq!(solved(&universe, &request), ["dracut=1", "kmod=1", "linux=6"]);
}

#[test]
fn everybody_who_asked_is_named_and_the_nearest_root_is_found() {
    let universe = trixie(&[
        "aa 1; Depends: bb | xx",
        "bb 1; Depends: cc",
        "cc 1",
        "dd 1; Essential: yes; Depends: cc",
        "xx 1",
    ]);
    let solution = solve(&universe, &wanting(&["aa"])).unwrap();
    let asked: Vec<String> = solution.packages["cc"].asked_by.iter().map(ToString::to_string).collect();
    assert_eq!(asked, ["bb needs cc", "dd needs cc"]);
    let why = |name: &str| solution.why(name).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(why("bb"), ["asked for by images/node.toml", "aa needs bb | xx"]);
    assert_eq!(why("cc"), ["essential", "dd needs cc"]);
    assert_eq!(why("aa"), ["asked for by images/node.toml"]);
    assert_eq!(why("xx"), [""; 0]);
}

#[test]
fn a_conflict_is_told_with_the_way_to_it() {
    let universe = trixie(&[
        "app 1; Depends: aa",
        "aa 1; Depends: bb (>= 2)",
        "bb 1",
        "needs-none 1; Depends: libfoobar",
        "libfoobaz 1",
        "foe 1; Conflicts: bb (<< 3)",
        "friend 1; Depends: bb",
    ]);
    for (names, text) in [
        (
            &["app"][..],
            "the packages do not fit together: aa needs bb (>= 2), but only bb 1 (trixie) exists; app needs aa; app is asked for by images/node.toml",
        ),
        (
            &["needs-none"],
            "the packages do not fit together: needs-none needs libfoobar, but there is no package libfoobar; did you mean libfoobaz?; needs-none is asked for by images/node.toml",
        ),
        (
            &["foe", "friend"],
            "the packages do not fit together: foe 1 (trixie) cannot stand beside bb (<< 3), which is bb 1 (trixie); foe is asked for by images/node.toml; friend needs bb; friend is asked for by images/node.toml",
        ),
        (
            &["libfobar"],
            "there is no package `libfobar` (asked for by images/node.toml); did you mean libfoobaz?",
        ),
    ] {
        assert_eq!(solve(&universe, &wanting(names)).unwrap_err().to_string(), text);
    }
    let request = Request { without: BTreeSet::from(["app".to_owned()]), ..wanting(&["app"]) };
    assert!(matches!(solve(&universe, &request), Err(Conflict::Excluded { .. })));
}

#[test]
fn a_conflict_behind_a_free_choice_is_told_too() {
    let universe = trixie(&["app 1; Depends: xx | yy", "xx 1; Conflicts: app", "yy 1; Depends: nothing"]);
    let text = solve(&universe, &wanting(&["app"])).unwrap_err().to_string();
    assert!(text.contains("app") && text.contains('x'), "{text}");
}

#[test]
fn the_same_request_gives_the_same_solution() {
    let lines: Vec<String> = (0..60)
        .map(|n| {
            format!(
                "p{n:02} 1; Depends: p{:02} | p{:02}, v{}; Provides: v{}",
                (n * 7 + 1) % 60,
                (n * 11 + 3) % 60,
                n % 5,
                (n + 1) % 5
            )
        })
        .collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let first = solved(&trixie(&lines), &wanting(&["p00", "p30"]));
    for _ in 0..20 {
        assert_eq!(solved(&trixie(&lines), &wanting(&["p00", "p30"])), first);
    }
}
