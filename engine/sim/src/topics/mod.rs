//! Topics that come and go.

#[cfg(test)]
mod churn;
mod remade;
