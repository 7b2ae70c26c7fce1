//! Recipes that want too much.

use crate::common::run::{Run, command, is_root, program, skipped};
use crate::lab::{Lab, TRY, processes_with};

#[test]
fn a_fork_bomb_gets_no_further_than_its_limit() {
    let script = r#"
        perl -e '
          for (1 .. 2000) { my $pid = fork; if (defined $pid && !$pid) { sleep 1000 } }
          opendir D, "/proc"; my $count = grep /^\d+$/, readdir D;
          open R, ">", "/build/out/result"; print R $count;
        '
    "#;
    let count: u32 = Lab::of("forks", script, "[limits]\nprocesses = 100\n").result("forks").parse().unwrap();
    // Process 1, bash and perl among them.
    assert!((90..=100).contains(&count), "{count}");
}

#[test]
fn a_bomb_that_never_ends_is_ended_by_time_with_all_its_parts() {
    let word = format!("kiln-bomb-{}", std::process::id());
    let script = format!(
        "bomb() {{ exec -a {word} bash -c 'while :; do bash -c : {word} & done'; }}\nbomb | bomb | bomb\n"
    );
    let lab = Lab::of("bomb", &script, "[limits]\nprocesses = 60\ntime = \"3s\"\n");
    lab.kiln(&["build", "bomb"])
        .fails(5, &["recipe bomb was stopped: it took longer than 3.0 s", "[limits]"]);
    assert_eq!(processes_with(&word), [""; 0]);
    assert_eq!(lab.kiln(&["list"]).ok().code, 0, "the machine goes on");
}

#[test]
fn a_file_of_100_gb_is_refused_by_the_kernel() {
    let script = format!(
        r#"{TRY}
        try sparse truncate -s 100G big
        try seek dd if=/dev/zero of=big bs=1M count=1 seek=100000
        try memory truncate -s 100G /dev/shm/big
        try small truncate -s 1M small
        rm -f big
        "#
    );
    let lab = Lab::of("big", &script, "[limits]\nfile = \"64MiB\"\n");
    lab.comes_to("big", &["sparse: no", "seek: no", "memory: no", "small: YES"]);
    lab.recipe("written", "head -c 100G /dev/zero > big", "[limits]\nfile = \"64MiB\"\n");
    lab.kiln(&["build", "written"]).fails(
        5,
        &["recipe written was stopped: a program of it wrote a file longer than limits.file", "[limits]"],
    );
}

#[test]
fn many_files_together_are_held_by_the_limit_of_the_disk() {
    let script = "for i in $(seq 100000); do head -c 8M /dev/zero > \"file $i\"; done";
    let lab = Lab::of("files", script, "[limits]\ndisk = \"256MiB\"\n");
    let run = lab
        .kiln(&["build", "files"])
        .fails(5, &["recipe files was stopped: it used ", "of disk, the limit is 268.44 MB"]);
    let used = run.stderr.split("it used ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(used.parse::<f64>().is_ok(), "{used}");
    // /tmp counts too.
    lab.recipe(
        "tmp",
        "for i in $(seq 100000); do head -c 8M /dev/zero > /tmp/$i; done",
        "[limits]\ndisk = \"256MiB\"\n",
    );
    lab.kiln(&["build", "tmp"]).fails(5, &["of disk, the limit is"]);
}

#[test]
fn a_memory_hog_is_refused_alone_and_killed_with_its_friends() {
    let alone = format!(
        "{TRY}\ntry alone perl -e '$x = \"x\" x (1 << 30)'\ntry little perl -e '$x = \"x\" x (1 << 20)'\n"
    );
    let lab = Lab::of("hog", &alone, "[limits]\nmemory = \"256MiB\"\n");
    lab.comes_to("hog", &["alone: no", "little: YES"]);
    let friends = "for i in 1 2 3 4 5 6; do perl -e '$x = \"x\" x (60 << 20); sleep 1000' & done; wait";
    lab.recipe("hogs", friends, "[limits]\nmemory = \"256MiB\"\n");
    lab.kiln(&["build", "hogs"])
        .fails(5, &["recipe hogs was stopped: its processes used", "of memory, the limit is 268.44 MB"]);
}

#[test]
fn memory_that_counts_for_no_process_is_not_to_be_had() {
    // memfd_create is system call 319 on x86-64, memfd_secret 447, shmget 29; 01600 is IPC_CREAT and the owner's rights.
    let script = format!(
        r#"{TRY}
        try memfd perl -e '$name = "x"; syscall(319, $name, 0) >= 0 or die $!'
        try secret perl -e 'syscall(447, 0) >= 0 or die $!'
        try shm perl -e 'syscall(29, 0, 1 << 30, 01600) >= 0 or die $!'
        try file dd if=/dev/zero of=/dev/shm/full bs=1M
        rm /dev/shm/full
        try queue perl -e 'syscall(68, 0, 01600) >= 0 or die $!'
        "#
    );
    Lab::of("hidden", &script, "")
        .comes_to("hidden", &["memfd: no", "secret: no", "shm: no", "file: no", "queue: YES"]);
}

#[test]
fn a_script_that_says_too_much_is_stopped() {
    let lab = Lab::of("talker", "yes 'I have something to say about this'", "");
    lab.kiln(&["build", "talker"])
        .fails(5, &["recipe talker was stopped: its log has more than 67.11 MB", "something to say"]);
}

#[test]
fn a_full_disk_is_code_6_and_the_rest_of_it_stays_free() {
    if !is_root() {
        skipped("this test mounts a small file system, which needs root");
        return;
    }
    let lab = Lab::of("full", "for i in $(seq 100000); do head -c 8M /dev/zero > \"file $i\"; done", "");
    fs_err::create_dir(lab.path("small")).unwrap();
    let script = r#"
        mount -t tmpfs -o size=400m none "$SMALL"
        mkdir "$SMALL/upper" "$SMALL/work"
        mount -t overlay -o "lowerdir=$KILN_STORE,upperdir=$SMALL/upper,workdir=$SMALL/work" none "$KILN_STORE"
        "$KILN" -C "$PROJECT" recipe build full
    "#;
    let mut unshare = command("unshare");
    unshare
        .args(["-m", "sh", "-e", "-c", script])
        .env("KILN", program())
        .env("PROJECT", lab.path("project"))
        .env("SMALL", lab.path("small"))
        .env("KILN_STORE", crate::common::images::store());
    let run = Run::of(&unshare.output().unwrap());
    run.fails(6, &["recipe full was stopped: the disk of the store has only", "kiln store gc"]);
}

#[test]
fn what_a_dead_kiln_left_in_a_lower_layer_of_an_overlay_goes_like_elsewhere() {
    if !is_root() {
        skipped("this test mounts a file system in layers, which needs root");
        return;
    }
    let lab = Lab::new();
    for folder in ["store/tmp/1-1/a/b/c", "store/tmp/1-1/a/b/d/e", "store/tmp/1-1/f", "small"] {
        fs_err::create_dir_all(lab.path(folder)).unwrap();
    }
    fs_err::write(lab.path("store/tmp/1-1/a/b/d/e/file"), "x").unwrap();
    let script = r#"
        mount -t tmpfs none "$SMALL"
        mkdir "$SMALL/upper" "$SMALL/work"
        mount -t overlay -o "lowerdir=$KILN_STORE,upperdir=$SMALL/upper,workdir=$SMALL/work" none "$KILN_STORE"
        "$KILN" -C "$PROJECT" recipe list >/dev/null
        ls "$KILN_STORE/tmp"
    "#;
    let mut unshare = command("unshare");
    unshare
        .args(["-m", "sh", "-e", "-c", script])
        .env("KILN", program())
        .env("PROJECT", lab.path("project"))
        .env("SMALL", lab.path("small"))
        .env("KILN_STORE", lab.path("store"));
    let run = Run::of(&unshare.output().unwrap()).ok();
    assert_eq!(run.stdout, "", "{}", run.text());
}
