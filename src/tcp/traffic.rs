//! All connections of a capture: finds the one that a frame belongs to, and keeps what waits in bounds.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::connection::{Connection, Ends};
use super::migrations::Migrations;
use super::tag::{Bytes, Tag};
use super::{Output, Report, Segment, Selection, Unread};
use crate::Result;
use crate::capture::{Frame, Timestamp};
use crate::limits::{MAX_TCP_CONNECTIONS, MAX_TCP_HELD};

/// The traffic of a network, as far as it was captured.
#[derive(Debug, Default)]
pub struct Traffic {
    connections: HashMap<Ends, (Connection, Tag)>,
    migrations: Migrations,
    /// Memory that is taken by what came out of order.
    held: usize,
    packets: u64,
    unread: [u64; Unread::ALL.len()],
}

impl Traffic {
    /// Looks for migrations, among the connections that are wanted.
    #[must_use]
    pub fn new(selection: Selection) -> Self {
        Self { migrations: Migrations::new(selection), ..Self::default() }
    }

    /// The next frame of the capture. What is wrong with it is counted.
    ///
    /// # Errors
    /// Those of `output`.
    pub fn handle_frame(&mut self, frame: &Frame<'_>, output: &mut dyn Output) -> Result<()> {
        self.packets += 1;
        match Segment::of(frame) {
            Ok(segment) => self.handle_segment(&segment, frame, output),
            Err(why) => {
                self.unread[why as usize] += 1;
                Ok(())
            }
        }
    }

    /// The capture has ended: passes on what still waits.
    ///
    /// # Errors
    /// Those of `output`.
    pub fn finish(mut self, output: &mut dyn Output) -> Result<Report> {
        let all: Vec<_> = self.connections.iter().map(|(ends, entry)| (*ends, entry.0.first_time)).collect();
        self.retire(all, output)?;
        self.unread[Unread::TooMany as usize] += self.migrations.too_many;
        let (ignored, encrypted) = (self.migrations.ignored, self.migrations.encrypted);
        let migrations = self.migrations.finish(output)?;
        Ok(Report { packets: self.packets, unread: self.unread, ignored, encrypted, migrations })
    }

    fn handle_segment(
        &mut self,
        segment: &Segment<'_>,
        frame: &Frame<'_>,
        output: &mut dyn Output,
    ) -> Result<()> {
        let (ends, side) = Ends::of(segment);
        let time = frame.time;
        if segment.syn
            && let Some((connection, _)) = self.connections.get(&ends)
            && connection.is_reopened_by(side, segment)
        {
            self.retire(vec![(ends, time)], output)?;
        }
        if self.connections.len() >= MAX_TCP_CONNECTIONS && !self.connections.contains_key(&ends) {
            self.make_room(output)?;
            if self.connections.len() >= MAX_TCP_CONNECTIONS {
                self.unread[Unread::TooMany as usize] += 1;
                return Ok(());
            }
        }
        let (connection, tag) = match self.connections.entry(ends) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert((Connection::new(time), Tag::new(ends, time))),
        };
        let before = connection.weight();
        let migrations = &mut self.migrations;
        connection.handle(side, segment, time, &mut |offset, data| {
            migrations.handle_bytes(tag, Bytes { side, offset, time, data }, output)
        })?;
        migrations.update(tag, connection);
        self.held = self.held - before + connection.weight();
        if self.held > MAX_TCP_HELD {
            self.relieve(output)?;
        }
        while let Some((migration, members)) = self.migrations.poll_followed() {
            self.retire(members.into_iter().map(|ends| (ends, time)).collect(), output)?;
            output.end(migration)?;
        }
        Ok(())
    }

    /// Takes connections out, in the order of the times beside them.
    fn retire(&mut self, mut which: Vec<(Ends, Timestamp)>, output: &mut dyn Output) -> Result<()> {
        which.sort_by_key(|(ends, time)| (*time, ends.0));
        for (ends, _) in which {
            let Some((mut connection, mut tag)) = self.connections.remove(&ends) else { continue };
            self.held -= connection.weight();
            let migrations = &mut self.migrations;
            let time = connection.last_time;
            let mut known = [0; 2];
            for side in [0, 1] {
                known[side] = connection.finish(side, &mut |offset, data| {
                    migrations.handle_bytes(&mut tag, Bytes { side, offset, time, data }, output)
                })?;
            }
            migrations.retire(&mut tag, &connection, known, output)?;
        }
        Ok(())
    }

    /// Lets go of connections that have nothing of a migration.
    fn make_room(&mut self, output: &mut dyn Output) -> Result<()> {
        let strangers = self.connections.iter().filter(|(_, (_, tag))| !tag.is_member());
        let strangers = strangers.map(|(ends, (connection, _))| (*ends, connection.first_time)).collect();
        self.retire(strangers, output)
    }

    /// Gives up missing bytes until half of what may be held is left, where most is held first.
    fn relieve(&mut self, output: &mut dyn Output) -> Result<()> {
        let waiting = self.connections.iter().filter(|(_, (connection, _))| connection.weight() > 0);
        let mut waiting: Vec<_> =
            waiting.map(|(ends, (connection, _))| (connection.weight(), ends.0, *ends)).collect();
        waiting.sort_by_key(|(weight, addresses, _)| (usize::MAX - weight, *addresses));
        for (_, _, ends) in waiting {
            let Some((connection, tag)) = self.connections.get_mut(&ends) else { continue };
            let (migrations, time) = (&mut self.migrations, connection.last_time);
            while self.held > MAX_TCP_HELD / 2 && connection.weight() > 0 {
                let before = connection.weight();
                let side = connection.fuller();
                connection.give_up(side, &mut |offset, data| {
                    migrations.handle_bytes(tag, Bytes { side, offset, time, data }, output)
                })?;
                self.held = self.held - before + connection.weight();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
