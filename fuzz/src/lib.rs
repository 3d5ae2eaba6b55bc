//! Fuzz bodies: one module a body, each with a function `run` that takes any bytes and panics if an invariant is broken.
//!
//! ```text
//! fuzz/src/<body>.rs            run(&[u8]), and smoke(): the corpus and seeded mutations of it, on any toolchain
//! fuzz/fuzz_targets/<body>.rs   one line; libFuzzer under cfg(fuzzing), otherwise a program that replays files
//! fuzz/corpus/<body>/           seeds; several bodies take streams and share those of whole_parse
//! scripts/fuzz.sh BODY SECONDS  runs libFuzzer
//! ```
//! To replay what a fuzzer has found: `cargo run -p migwire-fuzz --features targets --bin BODY -- FILE..`

pub mod codec;
pub mod conversation;
pub mod convert;
pub mod cut_anywhere;
pub mod device_state;
pub mod import;
pub mod interleave;
pub mod lenient;
pub mod multifd;
pub mod preempt;
pub mod recording;
pub mod recovery;
pub mod reemit;
pub mod replay;
pub mod return_path;
pub mod trouble;
pub mod whole_parse;
pub mod xbzrle;

#[path = "../../tests/common/converting.rs"]
mod converting;
#[path = "../../tests/common/made.rs"]
mod made;
#[path = "../../tests/common/ram.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod ram;
#[path = "../../tests/common/reading.rs"]
mod reading;
#[path = "../../tests/common/small.rs"]
#[expect(dead_code, reason = "shared with tests that break streams in more ways")]
mod small;
#[cfg(test)]
mod smoke;

/// The main function of a fuzz target: libFuzzer's under `cfg(fuzzing)`, one that replays files otherwise.
#[macro_export]
macro_rules! target {
    ($run:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $run(bytes));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            std::env::args_os().skip(1).try_for_each(|file| {
                $run(&std::fs::read(&file)?);
                println!("{}: ok", file.display());
                Ok(())
            })
        }
    };
}
