//! Scenarios by the command line: those of the project, and some of the tests' own that must fail.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use kiln::scenario::result::{Outcome, Run as Told};

use super::common::images;
use super::common::run::Run;
use super::common::tools;
use super::node::{Slot, only_in_full};

/// A folder for the reports of one test.
fn reports() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("kiln-reports-").tempdir_in(images::folder()).unwrap()
}

fn command(args: &[&str], reports: &Path) -> std::process::Command {
    let project = images::project();
    let mut command = images::kiln();
    let out = images::folder().join("out");
    command.args(["test", "-C"]).arg(project).arg("--out").arg(out).arg("--report").arg(reports).args(args);
    command
}

/// The report of the only scenario that was run.
fn told(run: &Run) -> Told {
    // Behind the report of a run that failed stands the error, as an object of its own.
    let mut documents = serde_json::Deserializer::from_str(&run.stdout).into_iter::<Vec<Told>>();
    let mut all = documents.next().unwrap().unwrap_or_else(|e| panic!("{e}: {}", run.text()));
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// Runs a scenario that must pass, with all machines that it has.
#[track_caller]
fn passes(scenario: &str, args: &[&str]) -> Told {
    let _all = Slot::all();
    let reports = reports();
    let run = Run::of(&command(&[&[scenario, "--json"], args].concat(), reports.path()).output().unwrap());
    if run.code != 0 {
        // What the person needs who reads the log of a CI: the whole story, and where the rest lies.
        panic!("{}\nreport: {}", run.text(), reports.keep().display());
    }
    let told = told(&run);
    judge(&told, &reports.path().join(scenario), args);
    told
}

/// What holds of every run that passed; its report is in `folder`.
#[track_caller]
fn judge(told: &Told, folder: &Path, args: &[&str]) {
    assert_eq!(told.verdict.outcome, Outcome::Passed);
    let left_out = told.steps.iter().filter(|step| step.outcome.why() == "the run is a short one").count();
    assert_eq!(usize::try_from(told.verdict.skipped).unwrap(), left_out, "{:?}", told.verdict);
    assert_eq!(left_out > 0, args.contains(&"--short"), "{:?}", told.verdict);
    assert!(told.images.iter().all(|image| image.sha256_after.as_ref() == Some(&image.sha256_before)));
    assert!(told.peak_memory_kib < 100 << 10, "kiln itself took {} KiB", told.peak_memory_kib);
    for file in ["report.json", "junit.xml", "index.html"] {
        assert!(folder.join(file).is_file(), "{file}");
    }
    for node in &told.nodes {
        let log = fs_err::read_to_string(folder.join(node.console_log.as_ref().unwrap())).unwrap();
        assert!(log.contains("Linux version"), "{}: {log}", node.name);
    }
}

#[test]
fn the_scenario_three_node_passes_in_short_with_one_image_for_both_agents() {
    // What is left out are the power cut and the reboot, which take as long again; `kiln test` does them.
    let _all = Slot::all();
    let reports = reports();
    let folder = reports.path().join("three-node");
    let args = ["three-node", "--short", "--keep"];
    let mut running = Running::start(&args, reports.path());
    running.wait_for("Keeping");
    let told: Told = serde_json::from_slice(&fs_err::read(folder.join("report.json")).unwrap()).unwrap();
    if told.verdict.outcome != Outcome::Passed {
        panic!("{}\nreport: {}", running.text(), reports.keep().display());
    }
    judge(&told, &folder, &args);
    let products = told.nodes.iter().filter(|node| node.role == "product");
    assert_eq!(products.count(), 3);
    assert_eq!(told.images.len(), 3, "server, agent and edge");
    assert!(
        told.links.iter().all(|link| link.sent.frames > 0 && link.received.frames > 0),
        "{:?}",
        told.links
    );

    // As long as it is kept, a person's kubectl speaks with it from this machine.
    running.wait_for("Reach");
    let config = folder.join("kubeconfig");
    let programs = reports.path().join("bin");
    tools::folder(&programs, &["kubectl"]);
    let nodes = || {
        let mut kubectl = super::common::run::command(programs.join("kubectl"));
        kubectl.arg("--kubeconfig").arg(&config).args(["get", "nodes", "--no-headers"]);
        Run::of(&kubectl.output().unwrap())
    };
    let seen = nodes().ok();
    assert_eq!(seen.stdout.lines().filter(|line| line.contains(" Ready ")).count(), 3, "{}", seen.stdout);
    let before = fs_err::read(&config).unwrap();
    let (code, text) = running.interrupt();
    assert_eq!(code, 130, "{text}");
    assert!(!config.exists(), "it leads nowhere any more");
    fs_err::write(&config, before).unwrap();
    assert_ne!(nodes().code, 0, "nobody listens for it");
}

/// Scenarios of the project with the recipes that must be built first, each a test of the full run.
macro_rules! scenarios_of_the_full_run {
    ($($test:ident: $scenario:literal $(after $recipe:literal)?,)*) => {
        /// Their names.
        const OF_THE_FULL_RUN: &[&str] = &[$($scenario),*];
        $(
            #[test]
            fn $test() {
                if only_in_full() {
                    return;
                }
                $(compile($recipe);)?
                passes($scenario, &[]);
            }
        )*
    };
}

scenarios_of_the_full_run! {
    the_scenario_smoke_passes: "smoke",
    the_scenario_networks_passes: "networks",
    the_scenario_nfs_passes: "nfs",
    the_scenario_faults_passes: "faults",
    the_scenario_hardware_passes: "hardware",
    the_scenario_join_passes: "join",
    the_scenario_cilium_passes: "cilium",
    the_scenario_k3s_faults_passes: "k3s-faults",
    the_scenario_three_node_passes_in_full: "three-node",
    the_scenario_kernel_vm_passes: "kernel-vm" after "linux-vm",
    the_scenario_kernel_node_passes: "kernel-node" after "linux-node",
}

/// Builds a recipe that takes minutes, unless it is in the store: 10 minutes of processor time for `linux-vm`, 26 for `linux-node`.
fn compile(recipe: &str) {
    let build = images::kiln().args(["recipe", "build", recipe, "-C"]).arg(images::project()).output();
    Run::of(&build.unwrap()).ok();
}

#[test]
fn the_full_run_has_every_scenario_of_the_project() {
    let files = super::common::run::files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("qemu"));
    let scenarios: Vec<&str> = files
        .iter()
        .filter(|file| !file.contains('/'))
        .filter_map(|file| file.strip_suffix(".toml"))
        .collect();
    let mut of_the_run = OF_THE_FULL_RUN.to_vec();
    of_the_run.sort_unstable();
    assert_eq!(of_the_run, scenarios);
}

/// A scenario of one node, written to a file.
fn scenario(folder: &Path, name: &str, steps: &str) -> PathBuf {
    let path = folder.join(format!("{name}.toml"));
    let text = format!(
        "schema = 1\ndescription = \"a test's own\"\nlimit = \"5min\"\n\n[node.one]\nprofile = \"bare\"\n\n{steps}"
    );
    fs_err::write(&path, text).unwrap();
    path
}

#[test]
fn a_step_that_is_not_so_fails_the_run_with_its_evidence_and_skips_what_follows() {
    let _slot = Slot::wait();
    let reports = reports();
    let file = scenario(
        reports.path(),
        "wrong",
        "[[step]]\nname = \"the name is another one\"\non = \"every\"\nrun = \"hostname; echo why >&2\"\nstdout = \"two\"\n\n[[step]]\nname = \"never reached\"\non = \"every\"\nrun = \"true\"\n",
    );
    let run = Run::of(&command(&[file.to_str().unwrap(), "--json"], reports.path()).output().unwrap());
    assert_eq!(run.code, 7, "{}", run.text());
    let told = told(&run);
    let step = |name: &str| told.steps.iter().find(|step| step.name == name).unwrap();
    let wrong = step("the name is another one");
    assert!(wrong.outcome.why().contains("it said `one`, not `two`"), "{:?}", wrong.outcome);
    let evidence = wrong.evidence.iter().find(|evidence| evidence.failed).unwrap();
    assert_eq!((evidence.stdout.trim(), evidence.stderr.trim()), ("one", "why"));
    assert!(step("never reached").outcome.is_skipped());
    assert!(run.stderr.contains("the name is another one"), "{}", run.stderr);
}

#[test]
fn a_unit_that_fails_after_boot_fails_the_run_in_the_end() {
    if only_in_full() {
        return;
    }
    let _slot = Slot::wait();
    let reports = reports();
    let file = scenario(
        reports.path(),
        "late",
        "[[step]]\nname = \"a unit fails\"\non = \"every\"\nrun = \"systemd-run --unit=late --wait false\"\nfails = true\n",
    );
    let run = Run::of(&command(&[file.to_str().unwrap(), "--json"], reports.path()).output().unwrap());
    assert_eq!(run.code, 7, "{}", run.text());
    assert!(told(&run).verdict.failures.iter().any(|line| line.contains("late.service")), "{}", run.text());
}

/// A run in the background, and what it said so far.
struct Running {
    child: Child,
    stderr: PathBuf,
}

impl Running {
    fn start(args: &[&str], reports: &Path) -> Self {
        let stderr = reports.join("stderr");
        let file = fs_err::File::create(&stderr).unwrap().into_file();
        let child = command(args, reports).stderr(file).stdout(Stdio::null()).spawn().unwrap();
        Running { child, stderr }
    }

    fn text(&self) -> String {
        fs_err::read_to_string(&self.stderr).unwrap()
    }

    #[track_caller]
    fn wait_for(&mut self, word: &str) {
        // The scenario has its own limit.
        let end = Instant::now() + Duration::from_secs(3600);
        while !self.text().contains(word) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("ended with {status} before `{word}`:\n{}", self.text());
            }
            assert!(Instant::now() < end, "no `{word}`:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// As Ctrl-C does.
    fn interrupt(self) -> (i32, String) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
        self.end()
    }

    fn end(mut self) -> (i32, String) {
        let status = self.child.wait().unwrap();
        (status.code().unwrap_or(-1), self.text())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let id = rustix::process::Pid::from_child(&self.child);
            rustix::process::kill_process(id, rustix::process::Signal::TERM).ok();
            self.child.wait().ok();
        }
    }
}

/// The processes whose parent is `parent`, with their command lines.
fn children(parent: u32) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let Some(id) = path.file_name().unwrap().to_str().unwrap().parse().ok() else { continue };
        let (Ok(stat), Ok(line)) =
            (fs_err::read_to_string(path.join("stat")), fs_err::read(path.join("cmdline")))
        else {
            continue;
        };
        let of: Option<u32> =
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if of == Some(parent) {
            found.push((id, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

#[test]
fn a_qemu_that_is_killed_from_outside_ends_the_run_and_is_told() {
    if only_in_full() {
        return;
    }
    let _slot = Slot::wait();
    let reports = reports();
    let file = scenario(reports.path(), "killed", "[[step]]\nname = \"wait\"\nwait = \"4min\"\n");
    let mut running = Running::start(&[file.to_str().unwrap()], reports.path());
    running.wait_for("Ready");
    let qemu =
        children(running.child.id()).into_iter().find(|(_, line)| line.contains("qemu-system")).unwrap().0;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(qemu.try_into().unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let (code, text) = running.end();
    assert_eq!(code, 7, "{text}");
    assert!(text.contains("killed from outside by signal 9"), "{text}");
}

#[test]
fn an_interrupted_run_leaves_no_process_and_no_folder() {
    let _slot = Slot::wait();
    let reports = reports();
    let temporary = reports.path().join("tmp");
    fs_err::create_dir(&temporary).unwrap();
    let file = scenario(reports.path(), "interrupted", "[[step]]\nname = \"wait\"\nwait = \"4min\"\n");
    let stderr = reports.path().join("stderr");
    let out = fs_err::File::create(&stderr).unwrap().into_file();
    let child = command(&[file.to_str().unwrap()], reports.path())
        .env("TMPDIR", &temporary)
        .stderr(out)
        .spawn()
        .unwrap();
    let mut running = Running { child, stderr };
    running.wait_for("Booting");
    let end = Instant::now() + Duration::from_secs(120);
    let mut machines = Vec::new();
    while machines.is_empty() {
        assert!(Instant::now() < end, "{}", running.text());
        std::thread::sleep(Duration::from_millis(50));
        machines = children(running.child.id());
        machines.retain(|(_, line)| line.contains("qmp.sock"));
    }
    let id = rustix::process::Pid::from_child(&running.child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    let (code, text) = running.end();
    assert_eq!(code, 130, "{text}");
    for (machine, _) in machines {
        assert!(!Path::new(&format!("/proc/{machine}")).exists(), "process {machine} is left");
    }
    let left: Vec<_> = fs_err::read_dir(&temporary).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_kept_cluster_gives_a_shell_until_it_is_ended() {
    use std::io::{Read, Write};
    if only_in_full() {
        return;
    }
    let _slot = Slot::wait();
    let reports = reports();
    let file = scenario(reports.path(), "kept", "[[step]]\nname = \"up\"\non = \"every\"\nready = true\n");
    let mut running = Running::start(&[file.to_str().unwrap(), "--keep"], reports.path());
    running.wait_for("Keeping");
    let project = images::project();
    let mut attach = images::kiln();
    attach.args(["test", "attach", "one", "-C"]).arg(project).arg("--report").arg(reports.path());
    let mut shell = attach.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut typed = shell.stdin.take().unwrap();
    let mut said = shell.stdout.take().unwrap();
    // The shell throws away what was typed before it was there, so a person who sees no answer types again.
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut chunk = [0; 256];
        while let Ok(count) = said.read(&mut chunk) {
            if count == 0 || sender.send(chunk[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    let (mut text, end) = (Vec::new(), Instant::now() + Duration::from_secs(300));
    while !String::from_utf8_lossy(&text).contains("kiln-42-one") {
        assert!(Instant::now() < end, "no answer: {}", String::from_utf8_lossy(&text));
        typed.write_all(b"\recho kiln-$((6 * 7))-$(hostname)\r").unwrap();
        while let Ok(more) = lines.recv_timeout(Duration::from_secs(5)) {
            text.extend(more);
        }
    }
    typed.write_all(b"\x01x").unwrap();
    assert!(shell.wait().unwrap().success());
    let (code, text) = running.interrupt();
    assert_eq!(code, 130, "{text}");
}
