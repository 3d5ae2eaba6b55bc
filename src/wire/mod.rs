//! Records and their bytes: one file a record family, with type, `parse`, `emit`, `wire_len` and tests together.
//!
//! No state and no I/O lives here. `parse` reads from a [`Cursor`] (fields may be missing because more input is to
//! come: [`Fault::More`]), `emit` writes into a [`Sink`] exactly the fields it is given, wrong ones too, and `wire_len`
//! says how many bytes that will be. Whatever `parse` accepts, `emit` gives back byte for byte.

mod colo;
mod command;
mod configuration;
mod cursor;
mod description;
mod header;
mod mapped_ram;
mod multifd;
mod name;
mod numbers;
mod ram;
mod return_path;
mod section;
mod sink;
mod vfio;
pub mod xbzrle;

pub use colo::{ColoCode, ColoMessage};
pub use command::{Advise, Command, CommandCode, Discard, DiscardRange};
pub use configuration::{Configuration, ConfigurationSubsection};
pub use cursor::{Cursor, Fault};
pub use description::DescriptionHead;
pub use header::FileHeader;
pub use mapped_ram::MappedRamHeader;
pub use multifd::{
    DevicePacket, MULTIFD_MAGIC, MULTIFD_PACKET_SIZE, MULTIFD_VERSION, Method, MultifdFlags, MultifdHello,
    Offsets, PacketHead, PaddedName, RamPacket, packet_page_count,
};
pub use name::Name;
pub use ram::{Bulk, Page, PageBody, PageWord, RamBlock, RamFields, RamFlags};
pub use return_path::{BitmapHead, Message, MessageKind, RECV_BITMAP_END};
pub use section::{SectionFooter, SectionHead, SectionIdentity, SectionKind};
pub use sink::Sink;
pub use vfio::{VfioPacketFlags, VfioPacketHead, VfioTag};

/// A record that can be read from and written to the wire.
pub trait Wire<'a>: Sized {
    /// Reads one record; the cursor stands behind it afterwards.
    ///
    /// # Errors
    /// [`Fault::More`] when the input ends inside the record, [`Fault::Bad`] when the bytes cannot be this record.
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault>;

    /// Writes the record: its fields as they are, whether they make sense or not.
    fn emit(&self, out: &mut impl Sink);

    /// Number of bytes that [`emit`](Self::emit) writes.
    fn wire_len(&self) -> usize;
}

#[cfg(test)]
pub(crate) mod testing {
    //! One table drives both directions: each case is parsed, emitted, measured and cut at every byte.

    use super::{Cursor, Fault, Wire};
    use std::fmt::Debug;

    /// Checks `bytes` against `record` in both directions, and that every proper prefix asks for more.
    pub(crate) fn round_trip<'a, T: Wire<'a> + PartialEq + Debug>(record: &T, bytes: &'a [u8]) {
        let mut cursor = Cursor::new(0x1000, bytes);
        let parsed = T::parse(&mut cursor).unwrap_or_else(|e| panic!("{record:?}: {e:?}"));
        assert_eq!(&parsed, record);
        assert!(cursor.is_empty(), "{record:?}: {} bytes left over", cursor.remaining());

        // The sink starts full of 0xa5, so that a byte that is skipped instead of written shows.
        let mut out = Vec::from([0xa5; 3]);
        record.emit(&mut out);
        assert_eq!(&out[3..], bytes, "{record:?}");
        assert_eq!(record.wire_len(), bytes.len(), "{record:?}");

        for cut in 0..bytes.len() {
            match T::parse(&mut Cursor::new(0x1000, &bytes[..cut])) {
                Err(Fault::More { .. }) => {}
                other => panic!("{record:?} cut at {cut}: {other:?}"),
            }
        }
    }
}
