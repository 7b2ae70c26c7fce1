//! Recipes: what no package has is built from source, in a sealed sandbox, to a step of the store.
//!
//! ```text
//! images/recipes/NAME/recipe.toml + files     [spec]
//!    | key: recipe, files, inputs, tools, time   [key]
//!    v
//! steps/recipe/NAME/KEY/
//!    out/          what the script left in /build/out, canonical
//!    out.json      path -> kind, size, digest of all of it, and one digest over that   [output]
//!    log           what the build said
//! ```
//!
//! [`build()`] makes what is missing, recipes that do not need each other side by side; [`check()`] builds once more under other
//! circumstances and compares. How a build is shut in is [`crate::sandbox`]'s.

mod build;
mod check;
mod enter;
mod fetch;
mod gonet;
mod key;
mod output;
mod root;
mod run;
mod spec;

pub use build::{Built, Options, build, find, step_key};
pub use check::{check, verdict};
pub use enter::enter;
pub(crate) use fetch::ask;
pub use fetch::hashes;
pub use output::{Node, OutputTree};
pub use spec::{FOLDER, Input, Limits, Recipe, RecipeFile, RecipeSpec, Recipes, Source, Span};
