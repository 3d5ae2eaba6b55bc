//! Which connections are migrations, and what their channels are called.
//!
//! A connection is undecided until its first bytes have told what it is; so many bytes of it are kept, [`FIRST`] at most. One that
//! begins with a magic number belongs to a migration, which it may be the first sign of. One that does not belongs to the one
//! that runs between the same hosts to the same port at that time, if there is one; if not, it is ignored, until there is.

use core::net::SocketAddr;
use std::collections::{BTreeMap, HashMap};

use super::connection::{Connection, Ends, Side};
use super::migration::{Migration, Route};
use super::tag::{Bytes, Flow, Member, State, Tag};
use super::{ChannelReport, MigrationReport, Missing, Output, Piece, Selection};
use crate::capture::{Direction, FileKind, Timestamp};
use crate::limits::{MAX_IMPORT_CONNECTIONS, MAX_IMPORT_FRAGMENTS, MAX_IMPORT_MIGRATIONS};
use crate::multifd::Beginning;
use crate::{ChannelId, Result};

/// First bytes of a direction that are kept until it is known what to do with them.
const FIRST: usize = 64 << 10;
/// The same, of all connections.
const FIRST_OF_ALL: usize = 8 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Migrations {
    selection: Selection,
    all: Vec<Migration>,
    /// The last one of each route.
    latest: HashMap<Route, usize>,
    /// Those that another one has followed, and whose connections have ended.
    followed: Vec<usize>,
    /// Bytes that are kept of undecided connections.
    kept: usize,
    pub(super) ignored: u64,
    pub(super) encrypted: u64,
    /// Connections that would have been one migration too many.
    pub(super) too_many: u64,
}

impl Migrations {
    pub(super) fn new(selection: Selection) -> Self {
        Self { selection, ..Self::default() }
    }

    /// Bytes of a connection.
    ///
    /// # Errors
    /// Those of `output`.
    pub(super) fn handle_bytes(
        &mut self,
        tag: &mut Tag,
        mut bytes: Bytes<'_>,
        output: &mut dyn Output,
    ) -> Result<()> {
        let flow = &mut tag.flows[bytes.side];
        match tag.state {
            State::Member(member) => return self.pass(flow, member, bytes, output),
            State::Ignored if tag.seen == self.all.len() => return Ok(()),
            State::Ignored => {}
            State::Undecided => self.keep(flow, &mut bytes),
        }
        let is_last = !bytes.data.is_empty();
        self.decide(tag, is_last, output)?;
        match tag.state {
            State::Member(member) if is_last => self.pass(&mut tag.flows[bytes.side], member, bytes, output),
            State::Undecided if is_last => {
                self.ignore(tag);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Keeps first bytes, as long as there is room and they are in a row; `bytes` becomes the rest.
    fn keep(&mut self, flow: &mut Flow, bytes: &mut Bytes<'_>) {
        if flow.first.is_empty() {
            (flow.first_offset, flow.first_time) = (bytes.offset, bytes.time);
        }
        if flow.first_offset + flow.first.len() as u64 == bytes.offset {
            let room = (FIRST - flow.first.len()).min(FIRST_OF_ALL.saturating_sub(self.kept));
            let (now, rest) = bytes.data.split_at(room.min(bytes.data.len()));
            flow.first.extend_from_slice(now);
            self.kept += now.len();
            (bytes.offset, bytes.data) = (bytes.offset + now.len() as u64, rest);
        }
    }

    /// What the connection itself has learned with its last packet.
    pub(super) fn update(&mut self, tag: &mut Tag, connection: &Connection) {
        if tag.closed.is_some() {
            return;
        }
        if !tag.is_member() {
            tag.opener = connection.opener();
            tag.exact = [0, 1].map(|side| connection.is_exact(side));
        }
        if connection.is_closed() {
            tag.closed = Some(connection.last_time);
            if let State::Member(member) = tag.state {
                self.close(member, connection.last_time);
            }
        }
    }

    /// Nothing comes of this connection any more. `ends` are where its directions end, as far as that is known.
    ///
    /// # Errors
    /// Those of `output`.
    pub(super) fn retire(
        &mut self,
        tag: &mut Tag,
        connection: &Connection,
        ends: [u64; 2],
        output: &mut dyn Output,
    ) -> Result<()> {
        if !tag.is_member() {
            self.decide(tag, true, output)?;
        }
        let State::Member(member) = tag.state else {
            self.ignore(tag);
            self.ignored += 1;
            self.encrypted += u64::from(tag.encrypted);
            return Ok(());
        };
        if tag.closed.is_none() {
            self.close(member, connection.last_time);
        }
        // Another connection may have the same ends.
        self.all[member.migration].members.retain(|ends| *ends != tag.ends);
        let directions = [Direction::ToDestination, Direction::ToSource];
        let sides = [member.source, 1 - member.source];
        let mut missing = Vec::new();
        for (direction, side) in directions.into_iter().zip(sides) {
            let flow = &mut tag.flows[side];
            if ends[side] > flow.settled {
                flow.lose(ends[side]);
            }
            missing.extend(flow.missing.drain(..).map(|bytes| Missing { direction, bytes }));
        }
        let has_magic = matches!(member.channel, ChannelId::Main | ChannelId::Multifd(_));
        let begins_somewhere = |side: Side| !tag.exact[side] && tag.flows[side].bytes > 0;
        let report = ChannelReport {
            channel: member.channel,
            to_destination: tag.flows[sides[0]].bytes,
            to_source: tag.flows[sides[1]].bytes,
            missing,
            mid_stream: !has_magic && sides.into_iter().any(begins_somewhere),
            one_way: connection.is_one_way(),
            closed: connection.is_closed(),
            counts: connection.counts(),
        };
        if let Some(slot) = self.all[member.migration].channels.get_mut(member.connection) {
            *slot = Some(report);
        }
        Ok(())
    }

    /// A migration that is over, and its connections: they can be retired, and then it ends.
    pub(super) fn poll_followed(&mut self) -> Option<(usize, Vec<Ends>)> {
        let migration = self.followed.pop()?;
        self.all[migration].is_over = true;
        Some((migration, std::mem::take(&mut self.all[migration].members)))
    }

    /// Ends those that have not ended before.
    ///
    /// # Errors
    /// Those of `output`.
    pub(super) fn finish(self, output: &mut dyn Output) -> Result<Vec<MigrationReport>> {
        let mut reports = Vec::new();
        for (number, migration) in self.all.into_iter().enumerate() {
            if !migration.is_over {
                output.end(number)?;
            }
            let Migration { source, destination, channels, .. } = migration;
            reports.push(MigrationReport { source, destination, channels });
        }
        Ok(reports)
    }

    /// Looks at what a connection is, and passes on what was kept of it if that is known. `is_last`: more bytes of it are not kept.
    fn decide(&mut self, tag: &mut Tag, is_last: bool, output: &mut dyn Output) -> Result<()> {
        tag.seen = self.all.len();
        let Some(member) = self.place(tag, is_last) else { return Ok(()) };
        tag.state = State::Member(member);
        if let Some(time) = tag.closed {
            self.close(member, time);
        }
        let mut order = [0, 1];
        order.sort_by_key(|side| tag.flows[*side].first_time);
        for side in order {
            let flow = &mut tag.flows[side];
            let first = std::mem::take(&mut flow.first);
            self.kept -= first.len();
            if !first.is_empty() {
                let bytes = Bytes { side, offset: flow.first_offset, time: flow.first_time, data: &first };
                self.pass(flow, member, bytes, output)?;
            }
        }
        Ok(())
    }

    /// Where a connection belongs, if that can be said.
    fn place(&mut self, tag: &Tag, is_last: bool) -> Option<Member> {
        if let Some((source, found)) = tag.magic() {
            return self.recognise(tag, source, Some(found), true);
        }
        if self.selection.is_some() {
            let source = self.selected(tag)?;
            return self.recognise(tag, source, None, is_last || tag.beginning(source).is_some());
        }
        let openers = tag.opener.map_or([0, 1], |opener| [opener; 2]);
        openers.into_iter().find_map(|opener| {
            let route = Route::of(tag, opener);
            let number = *self.latest.get(&route)?;
            let migration = &self.all[number];
            // Who opens the connections of this migration: its source, as a rule.
            let is_source = migration.source.ip() == route.from && migration.destination == route.to;
            let source = if is_source { opener } else { 1 - opener };
            let channel = migration.channel(tag, source, is_last)?;
            self.join(number, tag, channel, source)
        })
    }

    /// Which end is the source, by what was asked for.
    fn selected(&self, tag: &Tag) -> Option<Side> {
        let [a, b] = tag.ends.0;
        match [self.selection.has(a, b), self.selection.has(b, a)] {
            [true, true] => Some(tag.opener.unwrap_or(0)),
            [true, false] => Some(0),
            [false, true] => Some(1),
            [false, false] => None,
        }
    }

    /// A connection that may be the first one of its migration.
    fn recognise(
        &mut self,
        tag: &Tag,
        source: Side,
        magic: Option<Beginning>,
        is_certain: bool,
    ) -> Option<Member> {
        let (from, to) = (tag.ends.0[source], tag.ends.0[1 - source]);
        if !self.selection.has(from, to) {
            return None;
        }
        let route = Route::of(tag, tag.opener.unwrap_or(source));
        let number = match self.latest.get(&route) {
            Some(&latest) if self.all[latest].takes(tag, magic) => latest,
            _ if magic.is_none() && !(is_certain && tag.has_bytes()) => return None,
            _ => self.begin(route, from, to, tag.opened)?,
        };
        let channel = self.all[number].channel(tag, source, is_certain)?;
        self.join(number, tag, channel, source)
    }

    fn begin(
        &mut self,
        route: Route,
        source: SocketAddr,
        destination: SocketAddr,
        began: Timestamp,
    ) -> Option<usize> {
        if self.all.len() >= MAX_IMPORT_MIGRATIONS {
            self.too_many += 1;
            return None;
        }
        let number = self.all.len();
        self.all.push(Migration {
            source,
            destination,
            began,
            // The first place is for the main channel.
            channels: vec![None],
            members: Vec::new(),
            open: 0,
            last_closed: began,
            has_main: false,
            main_closed: None,
            pauses: 0,
            multifd: BTreeMap::new(),
            fragments: 0,
            is_over: false,
        });
        if let Some(before) = self.latest.insert(route, number)
            && self.all[before].open == 0
        {
            self.followed.push(before);
        }
        Some(number)
    }

    fn join(&mut self, number: usize, tag: &Tag, channel: ChannelId, source: Side) -> Option<Member> {
        let migration = &mut self.all[number];
        let mut connection = migration.channels.len();
        let mut channel = channel;
        if connection > MAX_IMPORT_CONNECTIONS {
            self.too_many += 1;
            return None;
        }
        match channel {
            ChannelId::Main => {
                (migration.has_main, connection) = (true, 0);
                (migration.source, migration.destination) = (tag.ends.0[source], tag.ends.0[1 - source]);
                migration.main_closed = None;
            }
            ChannelId::Resumed(n) => {
                migration.pauses = n;
                migration.main_closed = None;
            }
            ChannelId::Multifd(id) => drop(migration.multifd.insert(id, false)),
            ChannelId::Connection(_) => channel = ChannelId::Connection(connection as u32),
            _ => {}
        }
        if connection > 0 {
            migration.channels.push(None);
        }
        migration.open += 1;
        migration.members.push(tag.ends);
        let ends = [source, 1 - source].map(|side| tag.ends.0[side]);
        Some(Member { migration: number, connection, channel, source, ends })
    }

    fn close(&mut self, member: Member, time: Timestamp) {
        let migration = &mut self.all[member.migration];
        migration.open = migration.open.saturating_sub(1);
        migration.last_closed = migration.last_closed.max(time);
        match member.channel {
            ChannelId::Main | ChannelId::Resumed(_) => migration.main_closed = Some(time),
            ChannelId::Multifd(id) => drop(migration.multifd.insert(id, true)),
            _ => {}
        }
    }

    fn ignore(&mut self, tag: &mut Tag) {
        tag.state = State::Ignored;
        for flow in &mut tag.flows {
            let first = std::mem::take(&mut flow.first);
            self.kept -= first.len();
            tag.encrypted |= FileKind::of(&first) == FileKind::Tls;
        }
    }

    fn pass(
        &mut self,
        flow: &mut Flow,
        member: Member,
        bytes: Bytes<'_>,
        output: &mut dyn Output,
    ) -> Result<()> {
        let Bytes { side, offset, time, data } = bytes;
        let end = offset + data.len() as u64;
        if offset != flow.settled {
            let migration = &mut self.all[member.migration];
            flow.muted |= migration.fragments >= MAX_IMPORT_FRAGMENTS;
            if !flow.muted {
                migration.fragments += 1;
                flow.fragment = offset;
                flow.lose(offset);
            }
        }
        if flow.muted {
            flow.lose(end);
            return Ok(());
        }
        flow.settled = end;
        flow.bytes += data.len() as u64;
        let direction = if side == member.source { Direction::ToDestination } else { Direction::ToSource };
        let Member { migration, connection, channel, ends, .. } = member;
        output.piece(&Piece {
            migration,
            connection,
            channel,
            direction,
            ends,
            fragment: flow.fragment,
            time,
            data,
        })
    }
}
