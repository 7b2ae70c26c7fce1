//! A kernel that a person names: a profile of the project, a kernel that is built from source, an image by its manifest, or a .config file.

use std::path::Path;

use anyhow::{Context, Result};
use fs_err as fs;

use super::check::{ModuleSet, Offer};
use super::config::{Config, Version};
use super::stage;
use crate::arch::Arch;
use crate::built::{self, Built};
use crate::error::{Failure, Kind};
use crate::inventory::{FromRecipe, Made};
use crate::kernel;
use crate::linux;
use crate::lock::LockedPackage;
use crate::packages::Work;
use crate::pipeline::{self, Target};
use crate::rootfs::depmod::name_of;

/// A kernel and what is known of it.
#[derive(Debug)]
pub struct Named {
    config: Config,
    version: Version,
    arch: Arch,
    modules: Option<ModuleSet>,
}

impl Named {
    /// Finds what `name` means: a profile or a machine of scenarios; a kernel from source (`linux-vm`); else a manifest or an image
    /// beside one; else a .config file. `out` is the folder of images, `arch` the machine where `name` does not tell.
    pub fn find(work: &Work<'_>, name: &str, arch: Arch, out: &Path) -> Result<Self> {
        if work.project.find_image(name).is_some() {
            return Self::of_profile(work, name, arch, out);
        }
        if let Some(source) =
            name.strip_prefix("linux-").filter(|source| work.project.kernels.contains_key(*source))
        {
            let (arch, text) = linux::config(work, source)?;
            let (config, version) = stage::config(name, &text, None)?;
            return Ok(Named { config, version, arch, modules: None });
        }
        let path = Path::new(name);
        if name.ends_with(".json") || built::IMAGES.iter().any(|end| name.ends_with(end)) {
            return Self::of_image(work, name, out);
        }
        if path.is_file() {
            let (config, version) = stage::config(name, &fs::read(path)?, None)?;
            return Ok(Named { config, version, arch, modules: None });
        }
        let mut failure = Failure::new(
            Kind::Input,
            format!("`{name}` is no profile, no kernel from source, no image and no .config file"),
        );
        if let Some(near) = crate::spec::nearest(name, work.project.images().map(|image| image.name.as_str()))
        {
            failure = failure.hint(format!("did you mean `{near}`?"));
        }
        Err(failure.hint("name a profile, a manifest such as out/server.json, or a .config file").into())
    }

    fn of_profile(work: &Work<'_>, name: &str, arch: Arch, out: &Path) -> Result<Self> {
        let profile = work.project.profile(name)?;
        let packages = pipeline::base(work, profile, arch)?;
        let (package, _) = kernel::find(&packages)?;
        let kernel = pipeline::kernel(work, &Target { profile, arch, out }, &packages)?;
        let modules = stage::modules(profile, package, &kernel)?;
        let (config, version) = stage::config(name, &kernel.config.read()?, Some(&kernel.release))?;
        Ok(Named { config, version, arch, modules: Some(modules) })
    }

    /// The image's list of files names the package that its .config is from, and that is in the store or can be fetched.
    fn of_image(work: &Work<'_>, name: &str, out: &Path) -> Result<Self> {
        let image = Built::find(name, out)?;
        let (manifest, release) = (&image.manifest, &image.manifest.kernel);
        let at = format!("/boot/config-{release}");
        let gone = || {
            Failure::new(
                Kind::Input,
                format!("the kernel package of {name} is neither in the store nor in the lock"),
            )
            .hint(format!("name its .config: {at} in the image"))
        };
        let file = image.files.get(&at).with_context(|| format!("{name} lists no {at}"))?;
        if let Some(component) = manifest.components.get(&file.from) {
            let Made::Recipe(FromRecipe { recipe, outputs, .. }) = &component.made else {
                return Err(gone().into());
            };
            let built = linux::find(work, recipe, *outputs)?.ok_or_else(|| {
                let text = format!(
                    "the kernel of {name}, which recipe {recipe} built, is not in the store any more"
                );
                Failure::new(Kind::Input, text).hint(format!("name its .config: {at} in the image"))
            })?;
            return of_files(name, &image, |path| Ok(fs::read(built.output(path))?));
        }
        let info = manifest.packages.get(&file.from).ok_or_else(gone)?;
        let locked = work.locked.lock().package.iter().find(|p| p.sha256 == info.sha256).cloned();
        let stored = || {
            let size = fs::metadata(work.store.object_path(info.sha256)).ok()?.len();
            Some(LockedPackage {
                name: file.from.clone(),
                version: info.version.clone(),
                arch: info.arch.clone(),
                suite: String::new(),
                path: info.path.clone(),
                size,
                sha256: info.sha256,
            })
        };
        let package = work.package(&locked.or_else(stored).ok_or_else(gone)?)?;
        let read = |path: &str| -> Result<Vec<u8>> {
            let content = package.tree.get(path).and_then(|entry| entry.content()).cloned();
            Ok(content.with_context(|| format!("{} has no /{path}", file.from))?.read()?)
        };
        of_files(name, &image, read)
    }

    /// As the checks take it.
    pub fn offer(&self) -> Offer<'_> {
        Offer { config: &self.config, version: self.version, arch: self.arch, modules: self.modules.as_ref() }
    }
}

/// The kernel of the image `name`, whose kernel's own files are given by `read`.
fn of_files(name: &str, image: &Built, read: impl Fn(&str) -> Result<Vec<u8>>) -> Result<Named> {
    let release = &image.manifest.kernel;
    let (config, version) = stage::config(name, &read(&format!("boot/config-{release}"))?, Some(release))?;
    let base = format!("/usr/lib/modules/{release}/");
    let root = image.files.keys().filter(|path| path.starts_with(&base) && path.ends_with(".ko"));
    let root: std::collections::BTreeSet<String> = root.map(|path| name_of(path)).collect();
    let builtin = read(&format!("usr/lib/modules/{release}/modules.builtin"))?;
    let modules = ModuleSet {
        // The list of files has the root only; an image that was built passed with the modules of its initrd.
        initrd: root.clone(),
        root,
        builtin: String::from_utf8_lossy(&builtin).lines().map(name_of).collect(),
        ..ModuleSet::default()
    };
    Ok(Named { config, version, arch: image.manifest.arch, modules: Some(modules) })
}
