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
//! [`build`] makes what is missing, recipes that do not need each other side by side; [`check`] builds once more under other
//! circumstances and compares. How a build is shut in is [`crate::sandbox`]'s.

pub mod build;
pub mod check;
pub mod output;
pub mod spec;

pub use build::{Built, Options, build};
pub use check::check;
pub use output::{Kind, Node, OutputTree};
pub use spec::{Input, Limits, Recipe, RecipeFile, RecipeSpec, Recipes, Source};
