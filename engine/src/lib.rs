pub mod core;
pub mod mesh;
pub mod rt;
pub mod sync;
