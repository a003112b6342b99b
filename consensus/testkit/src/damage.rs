//! Damaged inputs for decoders, each from a seed. A fuzzer finds more, but needs a nightly toolchain and time. An
//! ordinary test runs the fuzzer's function on these inputs.

use std::env;
use std::panic;

use fastrand::Rng;

/// The number of inputs of one test, unless `FUZZ_SEEDS` says otherwise.
const SEEDS: u64 = 20_000;
/// The most changes to one input. A few changes leave most of it valid, so that the damage reaches deep into it.
const CHANGES_MAX: usize = 5;
/// The most bytes by which one change lengthens an input.
const ADDED_MAX: usize = 64;

/// Numbers at which lengths and counts go wrong.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x8000_0000,
    i64::MAX as u64,
    i64::MIN as u64,
    u64::MAX,
];

/// Runs `check` on each valid input, and on as many damaged ones as there are seeds. `check` panics if a promise is
/// broken; the seed is then printed. `FUZZ_SEED` is the first seed, and without `FUZZ_SEEDS` the only one.
pub fn run(valid: &[Vec<u8>], check: fn(&[u8])) {
    assert!(!valid.is_empty(), "damage needs something whole");
    let number = |name: &str| env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let first = number("FUZZ_SEED");
    let count = number("FUZZ_SEEDS").unwrap_or(if first.is_some() { 1 } else { SEEDS });
    for input in valid {
        check(input);
    }
    for seed in (first.unwrap_or(0)..).take(count as usize) {
        let input = damaged(valid, seed);
        if let Err(why) = panic::catch_unwind(|| check(&input)) {
            eprintln!("replay this test with FUZZ_SEED={seed}; the input is {input:02x?}");
            panic::resume_unwind(why);
        }
    }
}

/// One of the valid inputs with some changes.
fn damaged(valid: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut rng = Rng::with_seed(seed);
    let mut input = valid[rng.usize(..valid.len())].clone();
    for _ in 0..rng.usize(1..=CHANGES_MAX) {
        change(&mut input, valid, &mut rng);
    }
    input
}

fn change(input: &mut Vec<u8>, valid: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.usize(..=input.len());
    let behind = input.len() - at;
    let length = rng.usize(..=behind.min(ADDED_MAX));
    match rng.u8(..10) {
        0 => input.truncate(at),
        1 => drop(input.drain(at..at + length)),
        2 => {
            let added: Vec<u8> = (0..rng.usize(..ADDED_MAX)).map(|_| rng.u8(..)).collect();
            input.splice(at..at, added);
        }
        3 => {
            let again = input[at..at + length].to_vec();
            input.splice(at..at, again);
        }
        4 => {
            let other = &valid[rng.usize(..valid.len())];
            let from = rng.usize(..=other.len());
            let to = (from + rng.usize(..=ADDED_MAX)).min(other.len());
            input.splice(at..at + length, other[from..to].iter().copied());
        }
        5 | 6 => number(input, at, rng),
        7 if behind > 0 => input[at] = rng.u8(..),
        _ if behind > 0 => input[at] ^= 1 << rng.u8(..8),
        _ => {}
    }
}

/// Overwrites one to eight bytes with a number at which something may go wrong, or near one.
fn number(input: &mut [u8], at: usize, rng: &mut Rng) {
    let number = NUMBERS[rng.usize(..NUMBERS.len())].wrapping_add(rng.u64(..3)).wrapping_sub(1);
    let width = 1 << rng.usize(..4);
    let Some(to) = input.get_mut(at..at + width) else { return };
    match rng.bool() {
        true => to.copy_from_slice(&number.to_le_bytes()[..width]),
        false => to.copy_from_slice(&number.to_be_bytes()[8 - width..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_input_again_and_most_inputs_differ() {
        let valid = [vec![7; 100], vec![9; 30]];
        let inputs: Vec<Vec<u8>> = (0..1_000).map(|seed| damaged(&valid, seed)).collect();
        let again: Vec<Vec<u8>> = (0..1_000).map(|seed| damaged(&valid, seed)).collect();
        assert_eq!(inputs, again);
        let whole = inputs.iter().filter(|input| valid.contains(input)).count();
        assert!(whole < 200, "{whole} of 1000 inputs are undamaged");
        assert!(inputs.iter().all(|input| input.len() <= 100 + CHANGES_MAX * ADDED_MAX));
    }

    #[test]
    #[should_panic(expected = "found it")]
    fn a_failed_check_fails_the_test() {
        run(&[vec![1, 2, 3]], |input| assert!(input.len() == 3, "found it"));
    }
}
