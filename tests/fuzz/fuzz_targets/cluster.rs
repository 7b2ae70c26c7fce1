//! cluster.toml.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use kiln::cluster::plain;
use kiln::error;
use kiln::spec::Project;
use kiln::spec::cluster::Cluster;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    static PROJECT: OnceLock<Project> = OnceLock::new();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let project = PROJECT.get_or_init(|| Project::load(&here.join("../..")).expect("this project is sound"));
    match Cluster::parse("cluster.toml", text, Path::new("/nowhere"), project) {
        Ok(cluster) => {
            for node in cluster.nodes.values() {
                let _ = (plain(&cluster, node), cluster.network_of(node), node.disk.to_string());
            }
        }
        Err(error) => assert!(!error::report(&error).chain.is_empty()),
    }
});
