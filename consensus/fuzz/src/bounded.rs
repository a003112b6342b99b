//! Runs the functions of the fuzz targets on valid inputs and on damaged ones. `FUZZ_SEEDS` sets the number of
//! damaged inputs. What a group does with wrong fields in valid messages is tested by `group::check`.

mod corpus;
mod entries;
mod wire;

use testkit::damage;

#[test]
fn messages_between_brokers_are_decoded_or_refused() {
    damage::run(&corpus::messages(), wire::messages);
}

#[test]
fn hellos_are_decoded_or_refused() {
    damage::run(&corpus::hellos(), wire::hello);
}

#[test]
fn requests_of_tools_and_their_answers_are_decoded_or_refused() {
    damage::run(&corpus::tools(), wire::tools);
}

#[test]
fn entries_are_decoded_or_refused() {
    damage::run(&corpus::entries(), entries::entry);
}
