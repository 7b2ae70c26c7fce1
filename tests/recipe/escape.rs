//! Recipes that try to get out.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Stdio;

use crate::common::run::{Run, command, program};
use crate::lab::{Lab, TRY, processes_with};

#[test]
fn nobody_is_reached_over_any_kind_of_socket() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    tcp.set_nonblocking(true).unwrap();
    let port = tcp.local_addr().unwrap().port();
    let name = format!("kiln-test-{}", std::process::id());
    let local = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    local.set_nonblocking(true).unwrap();
    // AF_ALG 38, AF_VSOCK 40, AF_PACKET 17; SOCK_STREAM 1, SOCK_DGRAM 2, SOCK_RAW 3, SOCK_SEQPACKET 5.
    let script = format!(
        r#"{TRY}
        try tcp bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'
        try udp bash -c 'echo x > /dev/udp/8.8.8.8/53'
        try name perl -e 'exit !defined gethostbyname("example.org")'
        try abstract perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0) or die; connect(S, pack("Sa*", AF_UNIX, "\0{name}")) or die $!'
        for family in "alg 38 5" "vsock 40 1" "packet 17 3" "raw 2 3" "bluetooth 31 1"; do
          set -- $family
          try "$1" perl -e 'socket(S, $ARGV[0], $ARGV[1], 0) or die $!' "$2" "$3"
        done
        # Among themselves processes may talk.
        try own perl -MSocket -e 'socketpair(A, B, AF_UNIX, SOCK_STREAM, 0) or die $!; socket(S, AF_INET, SOCK_STREAM, 0) or die $!'
        "#
    );
    Lab::of("sockets", &script, "").comes_to(
        "sockets",
        &[
            "tcp: no",
            "udp: no",
            "name: no",
            "abstract: no",
            "alg: no",
            "vsock: no",
            "packet: no",
            "raw: no",
            "bluetooth: no",
            "own: YES",
        ],
    );
    assert_eq!(tcp.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "somebody came to the TCP port");
    assert_eq!(local.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "somebody came to the socket");
}

#[test]
fn no_file_of_the_host_is_there() {
    let lab = Lab::new();
    fs_err::write(lab.path("canary"), "host").unwrap();
    let canary = lab.path("canary");
    let script = format!(
        r#"{TRY}
        for path in '{0}' '{1}' /etc/hostname /etc/shadow /etc/machine-id /root/.ssh /home/* /proc/1/root/etc /proc/1/cwd/etc \
          /proc/2/root/../..{0} /sys/kernel /dev/sda /dev/vda /dev/kmsg /dev/mem /dev/tty /proc/kcore
        do
          try "$path" head -c 1 "$path"
        done
        # What is above the root is the root.
        try above test / -ef /../..
        "#,
        canary.display(),
        env!("CARGO_MANIFEST_DIR"),
    );
    lab.recipe("host-files", &script, "");
    let result = lab.result("host-files");
    let open: Vec<&str> = result.lines().filter(|line| line.ends_with("YES")).collect();
    assert_eq!(open, ["above: YES"], "{result}");
    assert_eq!(result.lines().count(), 18, "{result}");
}

#[test]
fn the_root_holds_nothing_but_the_packages_and_the_mounts() {
    let script = r#"
        cd /
        { echo *; (cd dev; echo *); (cd inputs; echo *); (cd inputs/recipe; echo *); (cd /build; echo *); (cd /tmp; echo *); } > /build/out/result
    "#;
    Lab::of("listing", script, "").comes_to(
        "listing",
        &[
            "bin boot build dev etc home inputs lib lib64 proc root run sbin sys tmp usr var",
            "fd full null random shm stderr stdin stdout urandom zero",
            "recipe",
            "build.sh",
            "out",
            "*",
        ],
    );
}

#[test]
fn a_folder_that_kiln_itself_inherited_is_no_way_out() {
    let script = format!("{TRY}\ntry inherited ls /proc/self/fd/9/\ntry up ls /proc/self/fd/9/../etc\n");
    let lab = Lab::of("inherited", &script, "");
    let mut shell = lab.command_of("/bin/sh".as_ref(), &["build", "inherited"]);
    let args: Vec<_> = shell.get_args().map(ToOwned::to_owned).collect();
    shell = command("/bin/sh");
    shell
        .env("KILN_STORE", crate::common::images::store())
        .args(["-c", "exec 9< /; ls /proc/self/fd/9/ > /dev/null || exit 99; exec \"$0\" \"$@\""])
        .arg(program())
        .args(args);
    Run::of(&shell.output().unwrap()).ok();
    lab.comes_to("inherited", &["inherited: no", "up: no"]);
}

#[test]
fn programs_of_the_host_are_not_found() {
    let lab = Lab::new();
    let tool = lab.path("canary-tool");
    fs_err::write(&tool, "#!/bin/sh\n").unwrap();
    fs_err::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let script = format!(
        "{TRY}\nfor tool in canary-tool '{}' cargo rustc python3 go git curl apt dpkg-deb; do try \"$tool\" \"$tool\" --version; done\n",
        tool.display()
    );
    lab.recipe("host-tools", &script, "");
    let mut command = lab.command(&["build", "host-tools"]);
    command.env("PATH", format!("{}:/usr/bin:/bin", lab.path("").display()));
    Run::of(&command.output().unwrap()).ok();
    let result = lab.result("host-tools");
    // dpkg is an Essential package: it is there because it is in the set.
    let open: Vec<&str> = result.lines().filter(|line| line.ends_with("YES")).collect();
    assert_eq!(open, ["dpkg-deb: YES"], "{result}");
}

#[test]
fn the_environment_is_kilns_and_the_recipes() {
    let lab = Lab::of("environment", "env | sed s,/build,BUILD, > out/result", "[env]\nMINE = \"a b\"\n");
    let mut command = lab.command(&["build", "environment", "--jobs", "1"]);
    command.env("SECRET_TOKEN", "x").env("LD_PRELOAD", "").env("CFLAGS", "-O9").env("LANG", "de_DE.UTF-8");
    Run::of(&command.output().unwrap()).ok();
    let result = lab.result("environment");
    let mut names: Vec<&str> = result.lines().map(|line| line.split('=').next().unwrap()).collect();
    names.sort_unstable();
    let expected = [
        "HOME",
        "KILN_JOBS",
        "KILN_OUT",
        "LC_ALL",
        "LOGNAME",
        "MINE",
        "PATH",
        "PWD",
        "RUN",
        "SHELL",
        "SHLVL",
        "SOURCE_DATE_EPOCH",
        "TMPDIR",
        "TZ",
        "USER",
        "_",
    ];
    assert_eq!(names, expected);
    for line in [
        "HOME=BUILD",
        "KILN_OUT=BUILD/out",
        "KILN_JOBS=1",
        "LC_ALL=C.UTF-8",
        "MINE=a b",
        "TZ=UTC",
        "TMPDIR=/tmp",
    ] {
        assert!(result.lines().any(|l| l == line), "{line}: {result}");
    }
}

#[test]
fn processes_of_the_host_are_neither_seen_nor_killed_nor_traced() {
    let mut sleeper = command("sleep").arg("300").spawn().unwrap();
    let pid = sleeper.id();
    // ptrace(PTRACE_ATTACH = 16) is system call 101 on x86-64.
    let script = format!(
        r#"{TRY}
        try see test -e /proc/{pid}/status
        try kill kill -9 {pid}
        try trace perl -e 'syscall(101, 16, {pid}, 0, 0) == 0 or die $!'
        try trace-init perl -e 'syscall(101, 16, 1, 0, 0) == 0 or die $!'
        try memory-of-init head -c 1 /proc/1/mem
        kill -9 1
        try init-lives test -e /proc/1/status
        set -- /proc/[0-9]*
        try alone test $# -le 4
        try name grep -q kiln /proc/sys/kernel/hostname
        "#
    );
    let lab = Lab::of("processes", &script, "");
    lab.comes_to(
        "processes",
        &[
            "see: no",
            "kill: no",
            "trace: no",
            "trace-init: no",
            "memory-of-init: no",
            "init-lives: YES",
            "alone: YES",
            "name: YES",
        ],
    );
    assert!(sleeper.try_wait().unwrap().is_none(), "a process of the host was killed");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

#[test]
fn a_daemon_left_behind_is_gone_when_the_build_is() {
    let word = format!("kiln-left-{}", std::process::id());
    let script = format!(
        r#"
        setsid nohup bash -c 'exec -a {word} sleep 1000' > /dev/null 2>&1 < /dev/null &
        until grep -qs {word} /proc/[0-9]*/cmdline; do :; done
        perl -e 'use POSIX; exit if fork; setsid; exit if fork; close STDOUT; close STDERR; $0 = "{word}"; sleep 1000'
        echo done > "$KILN_OUT/result"
        "#
    );
    let lab = Lab::of("daemon", &script, "");
    lab.comes_to("daemon", &["done"]);
    assert_eq!(processes_with(&word), [""; 0]);
}

#[test]
fn nothing_is_written_but_in_the_build_folder() {
    let script = format!(
        r#"{TRY}
        for path in / /usr /usr/bin/bash /etc/passwd /inputs /inputs/recipe /inputs/recipe/build.sh /inputs/other/result /dev /dev/fd /proc/sys/kernel/hostname; do
          if test -d "$path"; then path=$path/new; fi
          try "write $path" bash -c 'echo x > "$0"' "$path"
        done
        try chmod chmod u+w /inputs/recipe/build.sh
        try remove rm -f /inputs/recipe/build.sh
        try chown chown 0 /build/out
        for path in /build/x /tmp/x /dev/shm/x; do try "${{path//\//.}}" bash -c 'echo x > "$0"' "$path"; done
        "#
    );
    let lab = Lab::of("writes", &script, "[inputs.other]\nrecipe = \"other\"\n");
    lab.recipe("other", "echo other > \"$KILN_OUT/result\"", "");
    let result = lab.result("writes");
    let open: Vec<&str> = result.lines().filter(|line| line.ends_with("YES")).collect();
    assert_eq!(open, [".build.x: YES", ".tmp.x: YES", ".dev.shm.x: YES"], "{result}");
    assert_eq!(lab.result("other"), "other\n");
}

#[test]
fn every_mount_allows_what_it_must_and_no_more() {
    let script = r#"
        while read -r _ _ _ _ at options _; do echo "$at ${options%,relatime}"; done < /proc/self/mountinfo | sed s,/build,BUILD, | sort > out/result
    "#;
    let lab = Lab::of("mounts", script, "[inputs.other]\nrecipe = \"other-mount\"\n");
    lab.recipe("other-mount", "touch \"$KILN_OUT/result\"", "");
    let result = lab.result("mounts");
    // What a device's mount says is the host's business.
    let found: Vec<&str> =
        result.lines().filter(|l| !l.starts_with("/dev/") || l.starts_with("/dev/shm")).collect();
    assert_eq!(
        found,
        [
            "/ ro,nosuid,nodev",
            "/dev ro,nosuid,nodev,noexec",
            "/dev/shm rw,nosuid,nodev,noexec",
            "/inputs ro,nosuid,nodev,noexec",
            "/inputs/other ro,nosuid,nodev",
            "/inputs/recipe ro,nosuid,nodev",
            "/proc rw,nosuid,nodev,noexec",
            "/tmp rw,nosuid,nodev",
            "BUILD rw,nosuid,nodev",
        ]
    );
    assert_eq!(result.lines().count(), found.len() + 5, "{result}");
}

#[test]
fn rights_are_not_to_be_had() {
    let script = format!(
        r#"{TRY}
        try mount mount -t tmpfs none /tmp
        try remount mount -o remount,bind,rw /
        try unmount umount /proc
        try user unshare --user true
        try net unshare --net true
        try pid unshare --pid --fork true
        try chroot chroot / true
        try node mknod /build/sda b 8 0
        try char mknod /build/mem c 1 1
        try nice nice -n -5 true
        try hostname hostname other
        try clock date -s 2001-01-01
        try log dmesg
        try keys perl -e 'syscall(250, 0, -3, 0) >= 0 or die $!'
        try uring perl -e 'syscall(425, 1, 0) >= 0 or die $!'
        try oom bash -c 'echo -1000 > /proc/self/oom_score_adj'
        cp /usr/bin/bash /build/bash
        chmod 4755 /build/bash
        try setuid bash -c 'test "$(/build/bash -p -c "id -u")" = 0'
        try capabilities grep -q '^Cap.*:[[:space:]]*0*[1-9a-f]' /proc/self/status
        try no-new-privs grep -q '^NoNewPrivs:[[:space:]]*1' /proc/self/status
        "#
    );
    let lab = Lab::of("rights", &script, "");
    let result = lab.result("rights");
    let open: Vec<&str> = result.lines().filter(|line| line.ends_with("YES")).collect();
    // `nice` runs its command with the priority it has.
    assert_eq!(open, ["nice: YES", "no-new-privs: YES"], "{result}");
    assert_eq!(result.lines().count(), 19, "{result}");
}

#[test]
fn the_folder_of_another_recipe_is_not_there() {
    let script = format!(
        "{TRY}\ntry other ls /inputs/secret\ntry up ls /inputs/recipe/../secret\ntry recipes ls /inputs/recipe/../../recipes\n"
    );
    let lab = Lab::of("curious", &script, "");
    lab.recipe("secret", "true", "");
    lab.file("secret", "word", "x");
    lab.comes_to("curious", &["other: no", "up: no", "recipes: no"]);
}

#[test]
fn a_terminal_is_no_way_back() {
    let script = format!(
        // Field 6 of stat is the session, 7 the terminal (proc_pid_stat(5)).
        "{TRY}\ntry tty test -t 0 -o -t 2\ntry stdin read -r line\nset -- $(cat /proc/self/stat)\ntry session test $6 = $$ -a $7 = 0\n"
    );
    let lab = Lab::of("terminal", &script, "");
    let mut command = lab.command(&["build", "terminal"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"from the host\n").unwrap();
    Run::of(&child.wait_with_output().unwrap()).ok();
    lab.comes_to("terminal", &["tty: no", "stdin: no", "session: YES"]);
}
