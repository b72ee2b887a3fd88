//! Messages between two ranks.
//!
//! A message that is longer or shorter than the tensor that it is received into is an error. With
//! [`Check::Collective`], a message has a [`Header`] that describes its elements, so that a wrong
//! kind is an error, too. Header and elements are sent as one message, by a derived datatype with
//! the addresses of both.
//!
//! At the other levels a header would cost too much. Measured on 2 ranks of one machine, with such
//! a datatype on both ends and with plain elements: Open MPI 4.1.4, 8 B 1.42 and 0.52 µs, 1 MiB 310
//! and 165 µs, 80 MB 47 and 26 ms; MPICH 4.0.2, 8 B 1.87 and 0.19 µs, 4 KiB 11.4 and 0.8 µs.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use mpi_sys::{MPI_Aint, MPI_Comm, MPI_Datatype, MPI_Status};
use tch::Tensor;

use super::buffers::{Buffers, as_int};
use super::{Made, wide};
use crate::autograd::Metadata;
use crate::base::check::Check;
use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::base::tag::Tag;
use crate::communicator::Handle;
use crate::environment::datatype::Datatype;
use crate::environment::error_code::checked;
use crate::environment::status::{Envelope, Pattern, Status};

/// The description of its elements that a message has before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Header {
    scalar_type: i32,
    /// Whether the sender recorded the message, and so takes part in its backward pass.
    recorded: i32,
    count: i64,
}

/// The bytes of a header.
const HEADER: c_int = 16;
const _: () = assert!(size_of::<Header>() == HEADER as usize);

impl Header {
    /// A header that no message has.
    const NONE: Self = Self { scalar_type: -1, recorded: -1, count: -1 };

    /// The bytes that a message has in addition to its elements.
    pub(crate) fn bytes(comm: &Handle) -> i64 {
        if comm.environment().check() == Check::Collective { i64::from(HEADER) } else { 0 }
    }
}

/// Whether the library may write beyond the buffer of a receive. Open MPI copies a large message as
/// a whole to a buffer without gaps, even if the buffer is too small for it (seen in 4.1, between
/// processes that share memory). There are two ways to receive nevertheless:
///
/// - The message is probed for its length, and received when it has come (`MPI_Improbe`,
///   `MPI_Imrecv`). A blocking receive does so, and a started one of many elements, which every wait
///   and every start of the crate goes on with (`engine/flight/expected.rs`).
/// - The receive is handed to MPI at once, with two bytes of the crate's own at the end of the buffer,
///   and a gap between them. The gap makes Open MPI copy twice: measured on 2 ranks of one machine, an
///   exchange of 8 MiB took 5.1 ms with a gap, and 1.7 ms with probing and with raw MPI.
///
/// Only MPICH itself is known to cut the message and to tell: Intel MPI 2021.19 cuts it, and returns
/// success. A library of an unknown vendor is treated like Open MPI.
fn overruns() -> bool {
    static OVERRUNS: OnceLock<bool> = OnceLock::new();
    match mpi_sys::VENDOR {
        mpi_sys::Vendor::OpenMpi => true,
        _ => *OVERRUNS.get_or_init(|| !mpi_sys::library_version().starts_with("MPICH")),
    }
}

/// From how many bytes on a started receive is worth its probing.
const PROBED_FROM: i64 = 4096;

/// A message to send or to receive: the arguments of the call besides the buffer.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// A rank, `MPI_ANY_SOURCE` or `MPI_PROC_NULL`.
    peer: Rank,
    /// A tag or `MPI_ANY_TAG`.
    tag: Tag,
    count: i64,
    /// The header to send or to expect; `None` below [`Check::Collective`].
    header: Option<Header>,
}

impl Message {
    /// A message of `count` elements. `recorded` tells whether this rank records it for the
    /// backward pass.
    pub(crate) fn new(
        comm: &Handle,
        (peer, tag): (Rank, Tag),
        datatype: Datatype,
        count: i64,
        recorded: bool,
    ) -> Self {
        let header = (Header::bytes(comm) != 0).then(|| Header {
            scalar_type: datatype.scalar_type(),
            recorded: i32::from(recorded),
            count,
        });
        Self { peer, tag, count, header }
    }

    /// Whether it consists of the elements alone, so that they may be on a device: MPI takes no datatype
    /// of places on the host and on a device.
    pub(super) fn is_plain(&self) -> bool {
        self.header.is_none()
    }

    /// Whether it is received with nothing but the elements, however long it is.
    pub(super) fn is_received_plainly(&self) -> bool {
        self.is_plain() && !overruns()
    }

    pub(super) fn pattern(&self, context: MPI_Comm) -> Pattern {
        Pattern { context, source: self.peer, tag: self.tag }
    }

    /// Whether a started receive of it, of elements of `size` bytes, is worth its probing.
    pub(super) fn is_worth_probing(&self, size: usize) -> bool {
        let bytes = self.count.saturating_mul(i64::try_from(size).unwrap_or(i64::MAX));
        overruns() && self.peer != mpi_sys::MPI_PROC_NULL && bytes >= PROBED_FROM
    }
}

impl Buffers {
    pub(super) fn send(&self, made: &mut Made, message: &Message) -> Result<()> {
        let header = message.header.map(|header| made.keep(vec![header]).cast_mut());
        let Layout { start, count, datatype, _made: _held } =
            self.layout(self.send.cast_mut(), message.count, header)?;
        let (peer, tag, mut request) = (message.peer, message.tag, mpi_sys::MPI_REQUEST_NULL);
        // SAFETY: the buffer holds the elements until the started call has ended; the request
        // outlives this one.
        unsafe {
            checked!(MPI_Isend(start, count, datatype, peer, tag, self.context, &mut request))
        }?;
        made.started(request);
        Ok(())
    }

    pub(super) fn receive(&self, made: &mut Made, message: &Message) -> Result<()> {
        if overruns() && made.probes {
            made.awaited = Some(Awaited { buffers: *self, message: message.clone() });
            return Ok(());
        }
        self.receive_unseen(made, message)
    }

    /// Receives a message whose length is not known.
    fn receive_unseen(&self, made: &mut Made, message: &Message) -> Result<()> {
        let Layout { start, count, datatype, _made: _held } =
            self.incoming(made, message, overruns())?;
        let (peer, tag, mut request) = (message.peer, message.tag, mpi_sys::MPI_REQUEST_NULL);
        // SAFETY: the buffer has room for what the layout describes, until the started call has
        // ended; the request outlives this one.
        unsafe {
            checked!(MPI_Irecv(start, count, datatype, peer, tag, self.context, &mut request))
        }?;
        made.started(request);
        Ok(())
    }

    pub(super) fn send_receive(
        &self,
        made: &mut Made,
        send: &Message,
        receive: &Message,
    ) -> Result<()> {
        // The receive comes last, as `Made` keeps the status of the last request.
        self.send(made, send)?;
        self.receive(made, receive)
    }

    /// The bytes of an expected message, with its header.
    fn bytes(&self, message: &Message) -> i64 {
        let elements = message.count.saturating_mul(i64::try_from(self.size).unwrap_or(i64::MAX));
        elements.saturating_add(message.header.map_or(0, |_| i64::from(HEADER)))
    }

    /// The buffer to receive a message in; with a gap, if the message may be longer than the
    /// buffer.
    fn incoming(&self, made: &mut Made, message: &Message, gap: bool) -> Result<Layout> {
        made.header = message.header.map(|_| Box::new(Header::NONE));
        let header = made.header.as_deref_mut().map(std::ptr::from_mut);
        let whole = self.layout(self.receive, message.count, header)?;
        if !gap {
            return Ok(whole);
        }
        let place = made.keep(vec![0_u8; 3]).cast_mut();
        let both = Temporary::structure([
            (whole.count, address(whole.start)?, whole.datatype),
            (1, address(place.cast())?, mpi_sys::MPI_BYTE),
            (1, address(place.wrapping_add(2).cast())?, mpi_sys::MPI_BYTE),
        ])?;
        Ok(Layout { start: mpi_sys::MPI_BOTTOM, count: 1, datatype: both.0, _made: Some(both) })
    }

    /// The layout of a header, if there is one, and `count` elements.
    pub(super) fn layout(
        &self,
        elements: *mut c_void,
        count: i64,
        header: Option<*mut Header>,
    ) -> Result<Layout> {
        let fits = count <= i64::from(self.largest);
        let whole = if fits {
            None
        } else {
            Some(wide::elements(self.datatype, self.size, count, self.largest)?)
        };
        let (count, datatype) =
            whole.as_ref().map_or_else(|| (as_int(count), self.datatype), |whole| (1, whole.0));
        let Some(header) = header else {
            if let Some(whole) = &whole {
                whole.commit()?;
            }
            return Ok(Layout { start: elements, count, datatype, _made: whole });
        };
        let both = Temporary::structure([
            (HEADER, address(header.cast())?, mpi_sys::MPI_BYTE),
            (count, address(elements)?, datatype),
        ])?;
        Ok(Layout { start: mpi_sys::MPI_BOTTOM, count: 1, datatype: both.0, _made: Some(both) })
    }
}

/// A receive that is handed to MPI when its message has come.
pub(super) struct Awaited {
    buffers: Buffers,
    message: Message,
}

impl Awaited {
    pub(super) fn pattern(&self) -> Pattern {
        self.message.pattern(self.buffers.context)
    }

    /// Probes for the message, and starts to receive it if it has come. If other receives come before
    /// this one, `is_free` tells which messages, of a source and with a tag, none of them takes.
    ///
    /// # Safety
    /// MPI can be called, and the buffers are valid until the receive has ended.
    pub(super) unsafe fn receive(
        &self,
        made: &mut Made,
        is_free: Option<&dyn Fn(&Pattern) -> bool>,
    ) -> Result<bool> {
        let Pattern { context, mut source, mut tag } = self.pattern();
        let (mut found, mut handle) = (0, mpi_sys::MPI_MESSAGE_NULL);
        let mut status = Status::none();
        if let Some(is_free) = is_free {
            // SAFETY: the context is a communicator; the others outlive the call.
            unsafe { checked!(MPI_Iprobe(source, tag, context, &mut found, &mut status)) }?;
            (source, tag) = (status.MPI_SOURCE, status.MPI_TAG);
            if found == 0 || !is_free(&Pattern { context, source, tag }) {
                return Ok(false);
            }
        }
        // SAFETY: as above.
        unsafe {
            checked!(MPI_Improbe(source, tag, context, &mut found, &mut handle, &mut status))
        }?;
        if found == 0 {
            return Ok(false);
        }
        let too_long = Status::of(&status).bytes > self.buffers.bytes(&self.message);
        let Layout { start, count, datatype, _made: _held } =
            self.buffers.incoming(made, &self.message, too_long)?;
        let mut request = mpi_sys::MPI_REQUEST_NULL;
        // SAFETY: the buffer has room for what the layout describes, until the started call has
        // ended; the others outlive this one.
        unsafe { checked!(MPI_Imrecv(start, count, datatype, &mut handle, &mut request)) }?;
        made.started(request);
        Ok(true)
    }

    /// Hands the receive to MPI, before its message has come.
    ///
    /// # Safety
    /// As for [`receive`](Self::receive).
    pub(super) unsafe fn post(&self, made: &mut Made) -> Result<()> {
        self.buffers.receive_unseen(made, &self.message)
    }
}

/// A buffer as MPI's functions take it.
pub(super) struct Layout {
    pub(super) start: *mut c_void,
    pub(super) count: c_int,
    pub(super) datatype: MPI_Datatype,
    /// Owns the datatype if it was made for this layout. It may be freed once the call has started.
    pub(super) _made: Option<Temporary>,
}

fn address(start: *mut c_void) -> Result<MPI_Aint> {
    let mut address = 0;
    // SAFETY: the call takes any address; the result outlives it.
    unsafe { checked!(MPI_Get_address(start, &mut address)) }?;
    Ok(address)
}

/// The status of a message that has arrived, read from MPI's while MPI can be called.
pub(super) struct Arrival {
    /// Its bytes include those of a header.
    status: Status,
    /// Whether the message was too long for the buffer.
    truncated: bool,
}

impl Arrival {
    pub(super) fn of(status: &MPI_Status, code: c_int) -> Self {
        Self { status: Status::of(status), truncated: is_truncation(code) }
    }
}

/// Whether an error code says that a message was too long for its buffer.
pub(super) fn is_truncation(code: c_int) -> bool {
    let mut class = code;
    // SAFETY: the call takes any code that MPI returned; `class` outlives it.
    code != mpi_sys::MPI_SUCCESS
        && unsafe { mpi_sys::MPI_Error_class(code, &mut class) } == mpi_sys::MPI_SUCCESS
        && class == mpi_sys::MPI_ERR_TRUNCATE
}

/// Checks that the message that was received matches `result`, and resolves its envelope.
pub(super) fn check_received(
    site: Site,
    envelope: &Envelope,
    recorded: bool,
    result: &Tensor,
    datatype: Datatype,
    made: &Made,
) -> Result<()> {
    let Some(Arrival { status, truncated }) = &made.arrival else {
        unreachable!("what is received has a status")
    };
    let status = status.without(if made.header.is_some() { HEADER.into() } else { 0 });
    envelope.resolve(status);
    let kind = datatype.kind;
    let size = i64::try_from(kind.elt_size_in_bytes()).unwrap_or(1);
    let count = Metadata::of(result).count();
    let Status { source, tag, bytes } = status;
    let refuse = |what: String| {
        envelope.refuse();
        let message = format!("the message of rank {source} with tag {tag} {what}");
        Err(Error::Message { call: site.call, message })
    };
    // Of a message that was too long, the header may be missing, too.
    let header = made.header.as_deref().filter(|&&header| header != Header::NONE);
    if let Some(header) = header {
        let came = Datatype::of(header.scalar_type).map(|datatype| datatype.kind);
        if came != Some(kind) || header.count != count {
            let came = came.map_or("an unknown kind".to_owned(), |kind| format!("{kind:?}"));
            return refuse(format!(
                "has {} elements of {came}; `like` has {count} of {kind:?}",
                header.count
            ));
        }
        if (header.recorded != 0) != recorded {
            return refuse(if recorded {
                "does not require grad, but `like` does".to_owned()
            } else {
                "requires grad, but `like` does not".to_owned()
            });
        }
    }
    let needed =
        format!("`like` has {count} elements of {kind:?}, which are {} bytes", count * size);
    // MPI need not tell the length of a message that was truncated.
    if *truncated || bytes > count * size {
        return refuse(format!("is longer than `like`; {needed}"));
    }
    if bytes != count * size {
        return refuse(format!("has {bytes} bytes; {needed}"));
    }
    Ok(())
}

/// A datatype that is freed when dropped.
pub(super) struct Temporary(pub(super) MPI_Datatype);

impl Temporary {
    pub(super) fn new(make: impl FnOnce(&mut MPI_Datatype) -> Result<()>) -> Result<Self> {
        let mut datatype = mpi_sys::MPI_DATATYPE_NULL;
        make(&mut datatype)?;
        Ok(Self(datatype))
    }

    /// A datatype of blocks of elements (count, address, datatype), committed.
    pub(super) fn structure<const N: usize>(
        blocks: [(c_int, MPI_Aint, MPI_Datatype); N],
    ) -> Result<Self> {
        let (counts, addresses, types) =
            (blocks.map(|b| b.0), blocks.map(|b| b.1), blocks.map(|b| b.2));
        let count = c_int::try_from(N).unwrap_or(c_int::MAX);
        let whole = Self::new(|made| {
            // SAFETY: each list has N entries; the datatypes are valid.
            unsafe {
                checked!(MPI_Type_create_struct(
                    count,
                    counts.as_ptr(),
                    addresses.as_ptr(),
                    types.as_ptr(),
                    made,
                ))
            }
        })?;
        whole.commit()?;
        Ok(whole)
    }

    pub(super) fn commit(&self) -> Result<()> {
        let mut datatype = self.0;
        // SAFETY: a datatype that was made and not freed; committing does not change the handle.
        unsafe { checked!(MPI_Type_commit(&mut datatype)) }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // SAFETY: a datatype that this value owns, freed once.
        unsafe { mpi_sys::MPI_Type_free(&mut self.0) };
    }
}
