//! What is open on a connection: requests without an answer, and streams.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use sandstone_protocol::message::{REPLY_MAX_BYTES, REQUESTS_MAX, STREAMS_MAX, StreamId};

use crate::lock::lock;
use crate::stream::{Inlet, Outlet};

/// The open requests and streams. An id names one of them, whichever it is.
#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    /// Requests without a reply, with the longest that they may get, bytes.
    requests: HashMap<u32, usize>,
    /// Streams that neither side has ended or reset.
    streams: HashMap<StreamId, Stream>,
}

/// Our end of an open stream.
#[derive(Debug, Clone)]
pub(crate) enum Stream {
    /// The host reads.
    ToHost(Arc<Outlet>),
    /// The host writes.
    FromHost(Arc<Inlet>),
}

/// Whether another request may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Serve it.
    Enough,
    /// There are too many requests or streams: answer that, and open none of its streams.
    Full,
}

/// An id is 0, or names something already. The connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UsedTwice;

impl Table {
    /// Notes a request as unanswered, be there room for it or not, and how many bytes its reply may
    /// have. Its streams are to be opened next.
    ///
    /// # Errors
    /// [`UsedTwice`]; then nothing is noted.
    pub(crate) fn begin(
        &self,
        id: u32,
        reply_max_bytes: usize,
        streams: &[StreamId],
    ) -> Result<Room, UsedTwice> {
        let mut open = lock(&self.0);
        let known = |id| open.requests.contains_key(&id) || open.streams.contains_key(&id);
        let mut ids = vec![id];
        ids.extend(streams);
        for (index, id) in ids.iter().enumerate() {
            if *id == 0 || known(*id) || ids[..index].contains(id) {
                return Err(UsedTwice);
            }
        }
        let full =
            open.requests.len() >= REQUESTS_MAX || open.streams.len() + streams.len() > STREAMS_MAX;
        open.requests.insert(id, reply_max_bytes);
        Ok(if full { Room::Full } else { Room::Enough })
    }

    /// A request is answered: its id is free. Returns how many bytes the reply may have.
    pub(crate) fn answered(&self, id: u32) -> usize {
        lock(&self.0)
            .requests
            .remove(&id)
            .unwrap_or(REPLY_MAX_BYTES)
    }

    /// Opens a stream of a request that [`Self::begin`] found room for.
    pub(crate) fn open(&self, stream: Stream) {
        lock(&self.0).streams.insert(stream.id(), stream);
    }

    /// The stream with this id, unless it is over.
    pub(crate) fn stream(&self, id: StreamId) -> Option<Stream> {
        lock(&self.0).streams.get(&id).cloned()
    }

    /// Closes a stream, unless it is over. Who gets it here, and nobody else, tells its end.
    pub(crate) fn close(&self, id: StreamId) -> Option<Stream> {
        lock(&self.0).streams.remove(&id)
    }

    /// Closes all streams and makes their movers stop: the host is gone.
    pub(crate) fn give_up_all(&self) {
        let streams = std::mem::take(&mut lock(&self.0).streams);
        streams.into_values().for_each(Stream::give_up);
    }
}

impl Stream {
    fn id(&self) -> StreamId {
        match self {
            Self::ToHost(outlet) => outlet.id,
            Self::FromHost(inlet) => inlet.id,
        }
    }

    /// Makes its mover stop.
    pub(crate) fn give_up(self) {
        match self {
            Self::ToHost(outlet) => outlet.give_up(),
            Self::FromHost(inlet) => inlet.reset(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{Front, Waker};

    fn outlet(id: StreamId, waker: &Arc<Waker>) -> Arc<Outlet> {
        Outlet::new(id, Arc::clone(waker))
    }

    #[test]
    fn an_id_names_one_thing_until_that_is_over() {
        let waker = Waker::new().unwrap();
        let table = Table::default();
        assert_eq!(table.begin(1, 9, &[2, 3]), Ok(Room::Enough));
        table.open(Stream::ToHost(outlet(2, &waker)));
        for (id, streams) in [
            (0, &[][..]),
            (4, &[0][..]),
            (1, &[][..]),
            (2, &[][..]),
            (4, &[1][..]),
            (4, &[5, 2][..]),
            (4, &[4][..]),
            (4, &[5, 5][..]),
        ] {
            assert_eq!(
                table.begin(id, 9, streams),
                Err(UsedTwice),
                "{id} {streams:?}"
            );
        }
        // What was refused left nothing behind, and what is over frees its id.
        assert_eq!(table.begin(4, 9, &[5]), Ok(Room::Enough));
        assert_eq!(table.answered(1), 9);
        assert_eq!(table.begin(1, 9, &[]), Ok(Room::Enough));
        assert!(table.close(2).is_some());
        assert_eq!(table.begin(2, 9, &[]), Ok(Room::Enough));
    }

    #[test]
    fn only_one_closes_a_stream() {
        let waker = Waker::new().unwrap();
        let table = Table::default();
        table.open(Stream::ToHost(outlet(7, &waker)));
        assert!(matches!(table.stream(7), Some(Stream::ToHost(_))));
        assert!(table.close(7).is_some());
        assert!(table.close(7).is_none());
        assert!(table.stream(7).is_none());
    }

    #[test]
    fn requests_beyond_the_limit_find_no_room_but_are_noted() {
        let table = Table::default();
        let last = u32::try_from(REQUESTS_MAX).unwrap();
        for id in 1..=last {
            assert_eq!(table.begin(id, 9, &[]), Ok(Room::Enough), "{id}");
        }
        assert_eq!(table.begin(last + 1, 9, &[]), Ok(Room::Full));
        assert_eq!(table.begin(last + 1, 9, &[]), Err(UsedTwice));
        table.answered(1);
        table.answered(last + 1);
        assert_eq!(table.begin(1, 9, &[]), Ok(Room::Enough));
    }

    #[test]
    fn streams_find_room_up_to_the_limit() {
        let waker = Waker::new().unwrap();
        let table = Table::default();
        let last = u32::try_from(STREAMS_MAX).unwrap();
        for id in 1..last {
            table.open(Stream::ToHost(outlet(id, &waker)));
        }
        assert_eq!(table.begin(10_001, 9, &[20_000, 20_001]), Ok(Room::Full));
        assert_eq!(table.begin(10_002, 9, &[20_000]), Ok(Room::Enough));
        assert_eq!(table.begin(10_003, 9, &[]), Ok(Room::Enough));
    }

    #[test]
    fn a_host_that_is_gone_stops_every_mover() {
        let waker = Waker::new().unwrap();
        let table = Table::default();
        let out = outlet(1, &waker);
        let inlet = Inlet::new(2, Arc::clone(&waker));
        table.open(Stream::ToHost(Arc::clone(&out)));
        table.open(Stream::FromHost(Arc::clone(&inlet)));
        table.give_up_all();
        assert_eq!(out.credit(), None);
        assert_eq!(inlet.front(&mut [0; 1]), Front::Reset);
        assert!(table.stream(1).is_none() && table.stream(2).is_none());
    }
}
