//! Kernels from source: fragments of a .config, merged, and built by two recipes into what looks like a package.
//!
//! ```text
//! images/kernel/sources/NAME.toml, fragments, patches           [`crate::spec::KernelSource`]
//!    | merged; a contradiction is an error
//!    v
//! recipe linux-NAME-config    .config, and Kconfig's files      config.sh
//!    | every symbol that was asked for is there, or the dependency that stopped it is named   [`verify`]
//!    v
//! recipe linux-NAME           vmlinuz, modules, lists           build.sh
//!    | as a package
//!    v
//! the kernel of an image                                        [`package`]
//! ```
//!
//! The recipes are made here and not read from a folder, but are recipes like any other: `kiln recipe log linux-NAME` and
//! `kiln recipe build linux-NAME --check` know them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;

use crate::arch::Arch;
use crate::contract::config::Config;
use crate::contract::fragment::{Asked, FragmentError};
use crate::contract::kconfig::{self, Kconfig};
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::inventory::{FromRecipe, Made};
use crate::lock::SetKind;
use crate::packages::Work;
use crate::recipe::{self, Input, Limits, Options, Recipe, RecipeFile, RecipeSpec, Recipes, Span};
use crate::spec::{Base, KernelSource, Project, SCHEMA};
use crate::store::StepKey;
use crate::unpack::{self, Info, PackageKind, Unpacked};

const UNPACK: &str = include_str!("unpack.sh");
const CONFIG: &str = include_str!("config.sh");
const BUILD: &str = include_str!("build.sh");
/// How many symbols that Kconfig did not grant an error lists.
const SHOWN: usize = 20;

/// The name of the recipe that builds the kernel `name`, and of the package that it makes.
pub fn recipe_name(name: &str) -> String {
    format!("linux-{name}")
}

fn config_name(name: &str) -> String {
    format!("linux-{name}-config")
}

/// All recipes of a project: those in its folder and those of its kernels.
///
/// # Errors
/// A recipe of the folder has the name of a kernel's; a mistake in a recipe or a fragment.
pub fn recipes(project: &Project) -> Result<Recipes> {
    let mut all = Recipes::load(&project.dir)?;
    for (name, kernel) in project.kernels.iter().filter(|(_, kernel)| Arch::host() == Some(kernel.arch)) {
        let asked = asked(kernel)?;
        for recipe in [config_recipe(name, kernel, &asked), build_recipe(name, kernel)] {
            if let Some(twin) = all.0.get(&recipe.name) {
                let text = format!(
                    "{} has the name of a recipe that kiln makes for the kernel {name}",
                    twin.shown().display()
                );
                return Err(Failure::new(Kind::Input, text).hint("give the folder another name").into());
            }
            all.0.insert(recipe.name.clone(), recipe);
        }
    }
    Ok(all)
}

/// What the fragments of a kernel ask for.
fn asked(kernel: &KernelSource) -> Result<Asked> {
    let mut asked = Asked::default();
    for (path, text) in &kernel.fragment_texts {
        asked.add(path, text).map_err(|error| match error {
            FragmentError::Line { .. } => Failure::new(Kind::Input, error.to_string())
                .hint("a fragment has lines such as `CONFIG_NVME_CORE=y`, `# CONFIG_SOUND is not set`, and comments"),
            _ => Failure::new(Kind::Input, error.to_string()).hint("take one of both lines out"),
        })?;
    }
    Ok(asked)
}

fn recipe_of(name: String, kernel: &KernelSource, parts: &str, script: &str, text: &str) -> Recipe {
    let file = |bytes: &[u8]| RecipeFile { bytes: bytes.to_vec(), executable: false };
    let list: String = kernel.patches.iter().map(|patch| format!("{patch}\n")).collect();
    let mut files = BTreeMap::from([
        (script.to_owned(), file(text.as_bytes())),
        ("unpack.sh".to_owned(), file(UNPACK.as_bytes())),
        ("patches.list".to_owned(), file(list.as_bytes())),
    ]);
    files.extend(kernel.patch_texts.iter().map(|(name, bytes)| (format!("patches/{name}"), file(bytes))));
    let spec = RecipeSpec {
        schema: SCHEMA,
        description: kernel.description.clone(),
        tools: kernel.tools.clone(),
        script: script.to_owned(),
        outputs: Vec::new(),
        time: kernel.time.clone(),
        env: BTreeMap::from([
            ("ARCH".to_owned(), kernel.arch.kbuild().to_owned()),
            ("SRCARCH".to_owned(), kernel.arch.srcarch().to_owned()),
            ("KERNEL_PARTS".to_owned(), parts.to_owned()),
        ]),
        inputs: BTreeMap::from([(
            "source".to_owned(),
            Input { set: Some(kernel.source.clone()), ..Input::default() },
        )]),
        // A kernel with every driver takes an hour on two cores, and slow machines are many.
        limits: Limits { time: Span::hours(8), ..Limits::default() },
        foreign_paths: Vec::new(),
    };
    Recipe { name, spec, files }
}

fn config_recipe(name: &str, kernel: &KernelSource, asked: &Asked) -> Recipe {
    let mut recipe = recipe_of(config_name(name), kernel, "config", "config.sh", CONFIG);
    let text = asked.over(&Config::default()).to_string();
    recipe
        .files
        .insert("asked.config".to_owned(), RecipeFile { bytes: text.into_bytes(), executable: false });
    let base = match kernel.base {
        Base::Nothing => "nothing",
        Base::Defconfig => "defconfig",
    };
    recipe.spec.description = format!("the .config of the kernel {name}");
    recipe.spec.env.insert("KERNEL_BASE".to_owned(), base.to_owned());
    recipe.spec.outputs = ["config", "kconfig", "lost"].map(str::to_owned).to_vec();
    recipe
}

fn build_recipe(name: &str, kernel: &KernelSource) -> Recipe {
    let mut recipe = recipe_of(recipe_name(name), kernel, "build", "build.sh", BUILD);
    let image = match kernel.arch {
        Arch::Amd64 => "bzImage",
        // A compressed kernel that is an EFI program as well.
        Arch::Arm64 => "vmlinuz.efi",
    };
    let spec = &mut recipe.spec;
    spec.env.insert("KERNEL_IMAGE".to_owned(), image.to_owned());
    spec.env.insert("KERNEL_PACKAGE".to_owned(), recipe_name(name));
    spec.inputs.insert("config".to_owned(), Input { recipe: Some(config_name(name)), ..Input::default() });
    spec.outputs = ["boot", "usr"].map(str::to_owned).to_vec();
    recipe
}

/// The kernel `name` of the project.
fn get<'a>(project: &'a Project, name: &str, arch: Arch) -> Result<&'a KernelSource> {
    // A loaded profile names one that there is.
    let kernel = project.kernels.get(name).with_context(|| format!("there is no kernel {name}"))?;
    let refuse = |text: String| Failure::new(Kind::Input, text);
    if kernel.arch != arch {
        return Err(refuse(format!("the kernel {name} is for {}, not for {arch}", kernel.arch))
            .hint(format!("write one for {arch} beside it, or choose `kernel.flavour` for such a machine"))
            .into());
    }
    if Arch::host() != Some(arch) {
        return Err(refuse(format!("the kernel {name} can only be built on a machine with {arch}"))
            .hint("a kernel is built by a compiler of its own architecture; Debian's kernels (`kernel.flavour`) can be taken anywhere")
            .into());
    }
    Ok(kernel)
}

/// Everything that the kernel `name` depends on, from lock and TOML files alone.
pub fn digest(work: &Work<'_>, name: &str, arch: Arch) -> Result<Digest> {
    get(work.project, name, arch)?;
    let recipes = recipes(work.project)?;
    Ok(recipe::step_key(work, &recipes, &recipe_name(name))?.digest())
}

/// Makes the .config of the kernel `name` and sees that Kconfig granted all that its fragments ask for.
///
/// # Errors
/// [`Kind::Input`] with every symbol that is not what was asked, where that was, and the dependency that stopped it.
pub fn verify(work: &Work<'_>, recipes: &Recipes, name: &str, options: Options) -> Result<()> {
    let kernel = work.project.kernels.get(name).with_context(|| format!("there is no kernel {name}"))?;
    let config_recipe = config_name(name);
    let built = recipe::build(work, recipes, &[&config_recipe], options)?;
    let built = built.first().context("a recipe that was asked for was built")?;
    let kconfig = read_kconfig(&built.output("kconfig"), kernel.arch)?;
    let path = built.output("config");
    let config = Config::parse(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
    let asked = asked(kernel)?;
    asked.known(&kconfig).map_err(|error| {
        Failure::new(Kind::Input, error.to_string()).hint("correct the fragment, or take the line out")
    })?;
    let lost = asked.lost(&config, &kconfig);
    if lost.is_empty() {
        return Ok(());
    }
    let plural = if lost.len() == 1 { "symbol" } else { "symbols" };
    let mut text = format!("Kconfig did not grant {} {plural} that the kernel {name} asks for", lost.len());
    for one in lost.iter().take(SHOWN) {
        text.push_str(&format!("\n  {}", one.to_string().replace('\n', "\n  ")));
    }
    if lost.len() > SHOWN {
        text.push_str(&format!(
            "\n  … and {} more: `kiln recipe build {config_recipe}` has them all in `lost`",
            lost.len() - SHOWN
        ));
    }
    Err(Failure::new(Kind::Input, text).hint("ask for what it depends on too, or do not ask for it").into())
}

/// The machine of the kernel `name` and its .config, made and verified if need be; nothing is compiled.
pub fn config(work: &Work<'_>, name: &str) -> Result<(Arch, Vec<u8>)> {
    let recipes = recipes(work.project)?;
    verify(work, &recipes, name, Options { jobs: work.threads, keep_failed: false })?;
    let built = recipe::find(work, &recipes, recipes.get(&config_name(name))?)?;
    let built = built.map_err(|miss| anyhow::anyhow!("{} is not in the store: {miss}", config_name(name)))?;
    let arch = work.project.kernels.get(name).context("a kernel that was verified")?.arch;
    Ok((arch, fs::read(built.output("config"))?))
}

/// The symbols of the Linux whose Kconfig files lie in `folder`.
fn read_kconfig(folder: &Path, arch: Arch) -> Result<Kconfig> {
    let mut open = |path: &str| fs::read_to_string(folder.join(path)).ok();
    Ok(kconfig::read("Kconfig", &[("SRCARCH", arch.srcarch())], &mut open)?)
}

/// The kernel `name`, built if it is not in the store, as a package.
pub fn package(work: &Work<'_>, name: &str, arch: Arch) -> Result<Unpacked> {
    let kernel = get(work.project, name, arch)?;
    let recipes = recipes(work.project)?;
    let recipe_name = recipe_name(name);
    let options = Options { jobs: work.threads, keep_failed: false };
    let found = recipe::find(work, &recipes, recipes.get(&recipe_name)?)?;
    if found.is_err() {
        verify(work, &recipes, name, options)?;
    }
    let built = recipe::build(work, &recipes, &[&recipe_name], options)?;
    let built = built.first().context("a recipe that was asked for was built")?;
    let version = version(work, kernel, arch)?;
    let key = StepKey::new("kernel-package", &recipe_name, unpack::VERSION)
        .input("recipe", built.dir.record().key.digest())
        .input("version", &version)
        .input("description", &kernel.description);
    let info = Info {
        name: recipe_name.clone(),
        version,
        arch: arch.debian().to_owned(),
        source: Some("linux".to_owned()),
        summary: Some(kernel.description.clone()),
        depends: String::new(),
        provides: String::new(),
        base: false,
        scripts: Vec::new(),
    };
    let kind = PackageKind::Made(Made::Recipe(FromRecipe::of(recipes.get(&recipe_name)?, built)));
    unpack::folder(work.store, &key, &built.out(), info, kind, vec![work.store.relative(built.dir.path())])
}

/// The outputs of the recipe `recipe` of a kernel whose digest is `outputs`, if they are in the store.
pub(crate) fn find(work: &Work<'_>, recipe: &str, outputs: Digest) -> Result<Option<recipe::Built>> {
    let recipes = recipes(work.project)?;
    let Some(recipe) = recipes.0.get(recipe) else { return Ok(None) };
    Ok(recipe::find(work, &recipes, recipe)?.ok().filter(|built| built.tree.digest() == outputs))
}

/// The step of the kernel `name`, which was built, in the store.
pub fn built(work: &Work<'_>, name: &str) -> Result<PathBuf> {
    let recipes = recipes(work.project)?;
    let found = recipe::find(work, &recipes, recipes.get(&recipe_name(name))?)?;
    let built = found.map_err(|miss| anyhow::anyhow!("{} is not in the store: {miss}", recipe_name(name)))?;
    Ok(built.dir.path().to_owned())
}

/// The version of the package that the sources are from.
fn version(work: &Work<'_>, kernel: &KernelSource, arch: Arch) -> Result<String> {
    let packages = work.locked.packages(SetKind::Tool, &kernel.source, arch)?;
    let found = packages.iter().find(|package| package.name.starts_with("linux-source-"));
    Ok(found
        .with_context(|| format!("the tool set `{}` has no linux-source package", kernel.source))?
        .version
        .clone())
}
