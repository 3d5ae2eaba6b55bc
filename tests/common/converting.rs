//! A conversion in memory, and what must hold for it.

use std::collections::BTreeMap;

use migwire::container::Part;
use migwire::convert::{Changes, Options, Outlet, convert};
use migwire::dialect::{Dialect, Release};
use migwire::multifd::{ZeroPages, codec};
use migwire::report::{Reading, prove_all};
use migwire::wire::Method;
use migwire::{ChannelId, ErrorKind};

use super::made::Recipe;
use super::ram::memory;

/// The channels of a new migration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Channels(pub(crate) BTreeMap<ChannelId, Vec<u8>>);

impl Outlet for Channels {
    fn put(&mut self, channel: ChannelId, bytes: &[u8]) -> migwire::Result<()> {
        self.0.entry(channel).or_default().extend_from_slice(bytes);
        Ok(())
    }
}

impl Channels {
    pub(crate) fn parts(&self) -> Vec<Part> {
        self.0.iter().map(|(channel, bytes)| Part::of_bytes(*channel, bytes.clone())).collect()
    }
}

/// Converts.
///
/// # Errors
/// As `convert`.
pub(crate) fn converted(parts: &mut [Part], options: &Options) -> migwire::Result<(Channels, Changes)> {
    let mut channels = Channels::default();
    let changes = convert(parts, options, &mut channels)?;
    Ok((channels, changes))
}

/// What is asked for, out of a recipe.
pub(crate) fn options(recipe: &mut Recipe<'_>) -> Options {
    let dialect =
        recipe.of(["any", "any", "5.2", "7.2", "8.2", "9.1", "10.0", "11.1", "11.1-on-7.2", "11.1-on-11.1"]);
    let method = recipe.of([
        None,
        None,
        Some(Method::NONE),
        Some(Method::ZLIB),
        Some(Method::ZSTD),
        Some(Method::QPL),
    ]);
    let levels = method.and_then(codec::levels);
    Options {
        dialect: dialect.parse().unwrap_or_default(),
        channels: recipe.of([None, None, Some(0), Some(1), Some(2), Some(5)]),
        method,
        level: levels.filter(|_| recipe.one_in(4)).map(|levels| levels.lowest + recipe.below(3) as u32),
        zero_pages: recipe.of([
            None,
            None,
            Some(ZeroPages::Legacy),
            Some(ZeroPages::Multifd),
            Some(ZeroPages::None),
        ]),
        uuid: recipe.one_in(8).then_some([7; 16]),
        shuffle: recipe.one_in(3).then(|| recipe.below(256) as u64),
        ..Options::default()
    }
}

/// Why the new migration is not one that the release takes, read strictly; nothing if it is.
pub(crate) fn refused(channels: &Channels, dialect: Dialect, machine: Option<Release>) -> Option<String> {
    // Where no release is named, it is synchronised as it was.
    let dialect = if dialect == Dialect::ANY { dialect } else { dialect.or_on_machine(machine) };
    let mut parts = channels.parts();
    let mut reading = Reading { dialect, ..Reading::default() };
    reading.page_size = reading.page_size_of(&mut parts);
    reading.legs = reading.legs_of(&mut parts);
    let mut wrong = None;
    let whole = prove_all(&mut parts, &reading, |part, found| {
        if !found.is_identical() && wrong.is_none() {
            wrong = Some(format!("{}: {:?}", part.channel, found.error));
        }
    });
    let fault = whole.and_then(|whole| whole.faults.first().map(|fault| fault.to_string()));
    wrong.or(fault)
}

/// Converts, and holds the outcome against the input, which is a migration that a strict reading takes. With `is_stock`, it is also one
/// that a source may write, so that the release has to take what comes of it.
///
/// # Panics
/// If memory is not what it was; if the channels are not taken.
pub(crate) fn check(before: &Channels, options: &Options, is_stock: bool) {
    match converted(&mut before.parts(), options) {
        Err(error) if is_impossible(error.kind()) => {}
        Err(error) => assert!(!is_stock, "{error}"),
        Ok((found, changes)) => {
            let dialect = if is_stock { options.dialect } else { Dialect::ANY };
            if is_stock || refused(before, Dialect::ANY, None).is_none() {
                let refused = refused(&found, dialect, machine(before));
                assert_eq!(refused, None, "{options:?}, {changes:?}");
                let ram = |channels: &Channels| memory(&mut channels.parts()).map(|memory| memory.ram());
                let (before, after) = (ram(before).expect("it was read"), ram(&found).expect("it was read"));
                assert!(before == after, "{options:?}, {changes:?}");
            }
        }
    }
}

/// Version of the machine type at the beginning of a main channel.
pub(crate) fn machine(channels: &Channels) -> Option<Release> {
    let main = channels.0.get(&ChannelId::Main)?;
    let length = u32::from_be_bytes(main.get(9..13)?.try_into().ok()?) as usize;
    let name = std::str::from_utf8(main.get(13..)?.get(..length)?).ok()?;
    name.rsplit_once('-')?.1.parse().ok()
}

/// Whether an error says that something cannot be done, and not that the channels are faulty.
pub(crate) fn is_impossible(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unsupported | ErrorKind::Misuse)
}
