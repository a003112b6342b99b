//! stand-in
pub struct CorePlan {
    pub cpus: Vec<usize>,
}
