//! What a main channel holds: one reading ahead of the conversion, past the pages.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::DOING;
use crate::channel::Feed;
use crate::container::{Access, Part};
use crate::dialect::{Dialect, Release};
use crate::error::{Error, ErrorKind, Result};
use crate::stream::{Event, Grammar, Mode, Parser};
use crate::wire::{Command, ConfigurationSubsection, PageBody, RamFlags};

/// Packages from which something is dropped, of which account is kept.
const PACKAGES: usize = 1 << 12;

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) machine: Option<String>,
    /// Of the guest, if the configuration has it.
    pub(super) uuid: Option<[u8; 16]>,
    pub(super) page_size: u64,
    /// Sections have footers.
    pub(super) has_footers: bool,
    /// There are deltas (XBZRLE).
    pub(super) has_deltas: bool,
    /// There are MULTIFD_FLUSH words.
    pub(super) has_flush: bool,
    /// Pages have places in the file.
    pub(super) is_mapped: bool,
    /// LISTEN has come.
    pub(super) is_postcopy: bool,
    /// COLO begins behind the end.
    pub(super) is_colo: bool,
    /// A disk is sent along.
    pub(super) has_disk: bool,
    /// Numbers of commands that have no name.
    pub(super) strange: Option<u16>,
    /// Bytes of SWITCHOVER_START commands within the package at that offset.
    pub(super) switchovers: BTreeMap<u64, u32>,
    /// What a stock destination would refuse about it.
    pub(super) complaint: Option<Error>,
}

impl Survey {
    /// Reads the channel once. What is wrong with it is told when it is read in earnest.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn of(part: &mut Part) -> Result<Self> {
        if !part.is_lasting() {
            let message = "what is converted is read more than once, so it must be a file and not a pipe";
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, message).on(part.channel));
        }
        let mut parser = parser(part)?.with_elision();
        let mut feed = Feed::new(part.input(Access::Outline)?);
        let mut survey = Self::default();
        let mut package = None;
        let mut is_too_much = false;
        let _ = feed.run(&mut parser, |located, parser| {
            let grammar = parser.grammar();
            survey.note(&located.event, grammar);
            match &located.event {
                Event::Command(Command::Packaged { .. }) => package = Some(located.range.start),
                Event::Command(Command::SwitchoverStart) => {
                    if let Some(package) = package {
                        *survey.switchovers.entry(package).or_default() += located.raw.len() as u32;
                        is_too_much = survey.switchovers.len() > PACKAGES;
                    }
                }
                _ => {}
            }
            if grammar.package_end().is_none() {
                package = None;
            }
            Ok(if is_too_much { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        if is_too_much {
            let message = format!("more than {PACKAGES} packages from which something is to be dropped");
            return Err(Error::nowhere(ErrorKind::TooLarge, DOING, message).on(part.channel));
        }
        let grammar = parser.grammar();
        survey.page_size = grammar.page_size();
        survey.has_footers = grammar.footers() == Some(true);
        survey.is_postcopy = grammar.is_postcopy();
        survey.complaint = grammar.complaints().first().cloned();
        Ok(survey)
    }

    /// Version of the machine type, if its name has one.
    pub(super) fn machine_version(&self) -> Option<Release> {
        let (_, version) = self.machine.as_deref()?.rsplit_once('-')?;
        version.parse().ok()
    }

    fn note(&mut self, event: &Event<'_>, grammar: &Grammar) {
        match event {
            Event::Configuration(configuration) => {
                self.machine = Some(configuration.machine.text().into_owned());
            }
            Event::ConfigurationSubsection(ConfigurationSubsection::Uuid { uuid, .. }) => {
                self.uuid = Some(*uuid);
            }
            Event::Section(head) => {
                self.has_disk |= head.identity.is_some_and(|identity| identity.idstr.0 == b"block");
            }
            Event::RamBlock(block) => self.is_mapped |= block.mapped.is_some(),
            Event::RamWord(word) => {
                self.has_flush |= word.flags(grammar.page_size()).action() == RamFlags::MULTIFD_FLUSH;
            }
            Event::Page(page) => self.has_deltas |= matches!(page.body, PageBody::Xbzrle { .. }),
            Event::Command(Command::EnableColo) => self.is_colo = true,
            Event::Command(Command::Other { code, .. }) => self.strange = Some(code.0),
            _ => {}
        }
    }
}

/// A parser for the main channel, which forgives: what is converted may be faulty, and stays so.
pub(super) fn parser(part: &Part) -> Result<Parser> {
    let parser = Parser::with(Mode::Lenient, Dialect::ANY);
    #[cfg(feature = "json")]
    if let Some(trailer) = part.trailer()?
        && let Ok(description) = crate::vmstate::Description::parse(&trailer.text, trailer.offset)
    {
        let parser = parser.with_extents(description.extents());
        return Ok(match description.page_size {
            Some(page_size) => parser.with_page_size(page_size),
            None => parser,
        });
    }
    Ok(parser)
}
