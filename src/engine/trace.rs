//! The trace of calls: a span of the crate `tracing` for each, and its events in the
//! [timeline](crate::environment::trace).
//!
//! Every call that is made ready ([`Ready`](super::operator::Ready)) is traced, so operations need no
//! code for it. While nobody listens, [`Traced`] is empty.
//!
//! A blocking call is one span. That of a started call is entered twice, at the start and at the wait,
//! and ends with the wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::Span;
use tracing::field::{Empty, display};
use tracing::span::EnteredSpan;

use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::call::{Call, Exchange, Plan};
use crate::engine::communicator::Communicator;
use crate::engine::tape::Traffic;
use crate::environment::Environment;
use crate::environment::status::{Envelope, PROC_NULL};
use crate::environment::trace::{Details, Event, Group, InCall, Interval, Stream, thread, waited};

/// The span of a call, until it is dropped.
#[must_use]
pub(crate) struct Traced(Option<Box<Open>>);

/// A part of a call, on one thread: all of it, its start, or the wait for it.
struct Open {
    known: Known,
    entered: EnteredSpan,
    begin: Instant,
    /// How long the thread had waited before.
    waited: Duration,
    in_call: InCall,
}

/// What is known of a call.
struct Known {
    environment: Arc<Environment>,
    rank: Rank,
    details: Details,
    messages: Messages,
}

enum Messages {
    None,
    Pair { send: Option<Envelope>, receive: Option<Envelope> },
    Exchange(Arc<Exchange>),
}

impl Traced {
    /// The span of the call at `site`, which begins now.
    #[inline]
    pub(crate) fn begin(site: Site, comm: &Communicator) -> Self {
        Self(comm.environment().is_traced().then(|| Open::begin(site, comm)))
    }

    /// Notes what the call is to do.
    #[inline]
    pub(crate) fn describe(&mut self, plan: &Plan, traffic: impl FnOnce() -> Traffic) {
        if let Some(open) = &mut self.0 {
            open.known.describe(plan, traffic());
        }
    }

    /// Notes that the call has been recorded on the tape of `comm`, if that is on one.
    #[inline]
    pub(crate) fn note_place(&mut self, comm: &Communicator) {
        if let Some(open) = &mut self.0 {
            let record = comm.record().filter(|record| record.is_recording());
            open.known.details.place = record.map(|record| record.call_count());
        }
    }

    /// Ends the start of a call that goes on.
    #[inline]
    pub(crate) fn start(mut self) -> UnderWay {
        UnderWay(self.0.take().map(|open| open.start()))
    }
}

impl Drop for Traced {
    #[inline]
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            open.end();
        }
    }
}

/// The span of a started call, until it is dropped.
pub(crate) struct UnderWay(Option<Box<Flying>>);

struct Flying {
    known: Known,
    span: Span,
    begin: Instant,
}

impl UnderWay {
    pub(crate) fn untraced() -> Self {
        Self(None)
    }

    /// The wait at `site`, which begins now.
    #[inline]
    pub(crate) fn wait(mut self, site: Site) -> Waiting {
        Waiting(self.0.take().map(|flying| flying.wait(site)))
    }
}

impl Drop for UnderWay {
    #[inline]
    fn drop(&mut self) {
        if let Some(flying) = self.0.take() {
            flying.known.note_under_way(flying.begin);
        }
    }
}

/// The wait for a started call, until it is dropped.
#[must_use]
pub(crate) struct Waiting(Option<Box<Wait>>);

struct Wait {
    open: Open,
    site: Site,
    /// When the call was started.
    start: Instant,
}

impl Drop for Waiting {
    #[inline]
    fn drop(&mut self) {
        if let Some(wait) = self.0.take() {
            wait.end();
        }
    }
}

impl Open {
    #[cold]
    fn begin(site: Site, comm: &Communicator) -> Box<Self> {
        let identity = comm.identity().numbers();
        let details = Details {
            site,
            pass: ["forward", "backward", "pullback", "checkpoint"]
                [comm.pass_number().unsigned_abs() as usize],
            group: Group { identity, made: comm.handle().made() },
            is_started: false,
            adjoint_of: comm.adjoint_of(),
            tensor: None,
            to: None,
            from: None,
            tag: None,
            root: None,
            place: None,
            waited: Duration::ZERO,
        };
        let span = tracing::debug_span!(
            target: "mpi4tch",
            "call",
            call = site.call,
            started = Empty,
            pass = details.pass,
            number = site.number,
            adjoint_of = Empty,
            line = %site.at,
            communicator = %details.group,
            bytes = Empty,
            kind = Empty,
            to = Empty,
            from = Empty,
            tag = Empty,
            root = Empty,
            tape = Empty,
            waited_us = Empty,
        );
        let (environment, rank) = (Arc::clone(comm.handle().environment()), comm.rank());
        let known = Known { environment, rank, details, messages: Messages::None };
        Box::new(Self::enter(known, span))
    }

    fn enter(known: Known, span: Span) -> Self {
        let (entered, in_call) = (span.entered(), InCall::enter());
        Self { known, entered, begin: Instant::now(), waited: waited(), in_call }
    }

    /// Leaves the span. Returns it, with what is known of the call and when this part of it was.
    fn leave(self) -> (Known, Span, Option<Interval>) {
        let Self { mut known, entered, begin, waited: before, in_call } = self;
        drop(in_call);
        known.details.waited += waited() - before;
        known.resolve();
        known.tell(&entered);
        let at = known.since(begin);
        (known, entered.exit(), at)
    }

    #[cold]
    fn end(self: Box<Self>) {
        let (known, _span, Some(at)) = self.leave() else { return };
        known.record_call(at);
        known.record_messages(at, true);
        known.record_messages(at, false);
    }

    #[cold]
    fn start(mut self: Box<Self>) -> Box<Flying> {
        self.known.details.is_started = true;
        let begin = self.begin;
        let (known, span, at) = self.leave();
        if let Some(at) = at {
            known.record_call(at);
            known.record_messages(at, true);
        }
        Box::new(Flying { known, span, begin })
    }
}

impl Flying {
    #[cold]
    fn wait(self: Box<Self>, site: Site) -> Box<Wait> {
        let Self { known, span, begin } = *self;
        Box::new(Wait { open: Open::enter(known, span), site, start: begin })
    }
}

impl Wait {
    #[cold]
    fn end(self: Box<Self>) {
        let Self { open, site, start } = *self;
        let before = open.known.details.waited;
        let (known, _span, Some(at)) = open.leave() else { return };
        let waited = known.details.waited - before;
        let details = Box::new(Details { waited, ..known.details });
        known.record(Event::WaitFor { at, thread: thread(), site, details });
        known.record_messages(at, false);
        known.note_under_way(start);
    }
}

impl Known {
    fn describe(&mut self, plan: &Plan, traffic: Traffic) {
        let kind = plan.input.datatype().kind;
        let size = i64::try_from(kind.elt_size_in_bytes()).unwrap_or(0);
        let count = plan.input.count().max(plan.shape.iter().product());
        self.details.tensor = Some((count.saturating_mul(size), kind));
        self.details.root = plan.call.root();
        self.messages = match (&plan.call, traffic) {
            (Call::Exchange(exchange), _) => Messages::Exchange(Arc::clone(exchange)),
            (_, Traffic::Messages { send, receive }) => Messages::Pair { send, receive },
            _ => Messages::None,
        };
    }

    /// Notes between which ranks the message is, as far as that is known by now.
    fn resolve(&mut self) {
        let Messages::Pair { send, receive } = &self.messages else { return };
        let to = send.as_ref().and_then(Envelope::known);
        let from = receive.as_ref().and_then(Envelope::known);
        let details = &mut self.details;
        (details.to, details.from) = (to.map(|(rank, _)| rank), from.map(|(rank, _)| rank));
        details.tag = to.or(from).map(|(_, tag)| tag);
    }

    /// Tells a subscriber of the crate `tracing`.
    fn tell(&self, span: &Span) {
        let Details { tensor, to, from, tag, root, place, .. } = self.details;
        let (bytes, kind) = tensor.unzip();
        if self.details.is_started {
            span.record("started", true);
        }
        if self.details.adjoint_of != 0 {
            span.record("adjoint_of", self.details.adjoint_of);
        }
        let numbers = [
            ("bytes", bytes),
            ("to", to.map(i64::from)),
            ("from", from.map(i64::from)),
            ("tag", tag.map(i64::from)),
            ("root", root.map(i64::from)),
            ("tape", place.and_then(|place| i64::try_from(place).ok())),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                span.record(name, number);
            }
        }
        if let Some(kind) = kind {
            span.record("kind", display(format_args!("{kind:?}")));
        }
        span.record("waited_us", self.details.waited_us());
    }

    /// The time from `begin` to now in the timeline, if there is one.
    fn since(&self, begin: Instant) -> Option<Interval> {
        let timeline = self.environment.timeline()?;
        Some(Interval { begin: timeline.at(begin), end: timeline.now() })
    }

    fn record(&self, event: Event) {
        if let Some(timeline) = self.environment.timeline() {
            timeline.record(event);
        }
    }

    fn record_call(&self, at: Interval) {
        self.record(Event::Call { at, thread: thread(), details: Box::new(self.details) });
    }

    fn note_under_way(&self, begin: Instant) {
        if let Some(at) = self.since(begin) {
            let details = Box::new(self.details);
            self.record(Event::UnderWay { at, thread: thread(), details });
        }
    }

    /// Records the beginnings of the messages that are sent in a part of the call, or the ends of those
    /// that are received in it. An arrow leads from the beginning of the one to the end of the other.
    fn record_messages(&self, at: Interval, sends: bool) {
        let (thread, number) = (thread(), self.details.site.number);
        // A nanosecond before the end, where the next slice may begin.
        let at = if sends { at.begin } else { at.begin.max(at.end.saturating_sub(1)) };
        for stream in self.streams(sends) {
            self.record(Event::Message { at, thread, sends, stream, number });
        }
    }

    /// The streams of the messages that the call sends, or of those that it has received.
    fn streams(&self, sends: bool) -> Vec<Stream> {
        let Details { group, pass, .. } = self.details;
        let own = self.rank;
        let stream = |is_exchange, peer, tag| {
            let (from, to) = if sends { (own, peer) } else { (peer, own) };
            Stream { identity: group.identity, pass, is_exchange, from, to, tag }
        };
        match &self.messages {
            Messages::None => Vec::new(),
            Messages::Pair { send, receive } => {
                let end = if sends {
                    send.as_ref().and_then(Envelope::known)
                } else {
                    let status = receive.as_ref().and_then(Envelope::status);
                    status.map(|status| (status.source, status.tag))
                };
                let end = end.filter(|&(peer, _)| peer != PROC_NULL);
                end.map(|(peer, tag)| stream(false, peer, tag)).into_iter().collect()
            }
            Messages::Exchange(exchange) => {
                let edges: &mut dyn Iterator<Item = _> =
                    if sends { &mut exchange.sends() } else { &mut exchange.receives() };
                let edges = edges.filter(|edge| !edge.region.is_empty());
                edges.map(|edge| stream(true, edge.peer, edge.tag)).collect()
            }
        }
    }
}
