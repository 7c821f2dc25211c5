//! A stream that reads along between the driver and the socket, message headers only: which requests
//! are on their way, which answers have ended, and the transaction status that ends each of them (the
//! protocol's `ReadyForQuery`).
//!
//! The driver's library tells none of this, and a request that was given up is sent all the same: so
//! without it, whoever acquires next might be in somebody else's transaction. The messages are those
//! of the [protocol](https://www.postgresql.org/docs/current/protocol-message-formats.html).
//!
//! Not here: what is known of a session (`session.rs`), and what is done about it (`mod.rs`).

use super::session::Session;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::{io, mem};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// A stream that reads along.
pub(super) struct Tap<S> {
    stream: S,
    session: Arc<Session>,
    /// The session's.
    waker: Waker,
    /// There was nothing to read, and that waker is called when there is.
    is_dry: bool,
    frontend: Frontend,
    backend: Backend,
    requests: Requests,
}

/// Requests on their way, oldest first.
#[derive(Default)]
struct Requests {
    oldest: Option<Request>,
    /// Those after it: none unless somebody does not wait for the answers.
    others: VecDeque<Request>,
    /// How many of them are not harmless.
    noticeable: u32,
    /// The server awaits data from `COPY … FROM STDIN`.
    copying: bool,
    /// It does, and has been sent a `Sync` along with the statement.
    synced: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Request {
    /// A simple query, or a function call.
    Simple,
    /// Messages up to a `Sync`.
    Extended,
    /// `CopyFail`, because the copy was given up. If the server had refused it before it began, there
    /// is one answer more than the driver (0.7.18) knows of: from then on it gives each answer to the
    /// wrong request, until it notices.
    CopyFailed,
    /// One that changes nothing that anybody could notice: no more than the end of statements and
    /// portals, or a `Sync` by itself.
    Harmless,
}

impl Requests {
    #[inline]
    fn push(&mut self, request: Request) {
        self.noticeable += u32::from(request != Request::Harmless);
        match self.oldest {
            None => self.oldest = Some(request),
            Some(_) => self.others.push_back(request),
        }
    }

    #[inline]
    fn pop(&mut self) -> Option<Request> {
        let request = self.oldest.take()?;
        self.oldest = self.others.pop_front();
        self.noticeable -= u32::from(request != Request::Harmless);
        Some(request)
    }

    /// How many have not been answered that somebody could notice.
    #[inline]
    fn unanswered(&self) -> u32 {
        self.noticeable + u32::from(self.copying)
    }
}

/// Where the messages to the server stand.
struct Frontend {
    /// The first ones have no type: requests for encryption, and the start of the session.
    started: bool,
    header: Header,
    /// Bytes of the present message that are still to come.
    body: usize,
    /// The present request, as far as it has been seen.
    request: Option<Request>,
    /// The driver has more to write than there was room for. It may be another request.
    blocked: bool,
}

/// Where the messages from the server stand.
struct Backend {
    /// The answer to a request for encryption: one letter.
    letter: bool,
    header: Header,
    tag: u8,
    body: usize,
    /// What has been seen of a body that comes in pieces and says something.
    kept: Vec<u8>,
    /// The driver has been given something and has not asked for more: it may be held up by whoever is
    /// to read an answer, and have read the end of that one too.
    reading: bool,
}

/// The longest body that is kept: a parameter's name and value.
const MOST_KEPT: usize = 256;

/// Whether a message from the server changes what is known of the session; see `Tap::ended`.
#[inline]
fn says_something(tag: u8) -> bool {
    matches!(tag, b'Z' | b'C' | b'S' | b'G' | b'W' | b'E')
}

/// The first bytes of a message, as far as they have come.
#[derive(Default)]
struct Header {
    bytes: [u8; 8],
    count: usize,
}

impl Header {
    /// Takes bytes until it has so many; answers with the header if it does.
    #[inline]
    fn fill<const SIZE: usize>(&mut self, bytes: &mut &[u8]) -> Option<[u8; SIZE]> {
        if self.count == 0 {
            // Most headers come in one piece.
            if let Some((head, rest)) = bytes.split_first_chunk() {
                *bytes = rest;
                return Some(*head);
            }
        }
        self.piece(bytes)
    }

    #[cold]
    fn piece<const SIZE: usize>(&mut self, bytes: &mut &[u8]) -> Option<[u8; SIZE]> {
        let missing = (SIZE - self.count).min(bytes.len());
        let (head, rest) = bytes.split_at(missing);
        self.bytes[self.count..self.count + missing].copy_from_slice(head);
        self.count += missing;
        *bytes = rest;
        if self.count < SIZE {
            return None;
        }
        self.count = 0;
        self.bytes.first_chunk().copied()
    }
}

/// The length of a message's body, from the length of the message as it stands in its header, of which
/// so much has been read.
#[inline]
fn left(length: [u8; 4], read: usize) -> usize {
    (u32::from_be_bytes(length) as usize).saturating_sub(read)
}

/// Skips so much of a message's body as there is.
#[inline]
fn skip<'b>(left: &mut usize, bytes: &mut &'b [u8]) -> &'b [u8] {
    let count = (*left).min(bytes.len());
    let (body, rest) = bytes.split_at(count);
    *left -= count;
    *bytes = rest;
    body
}

/// The first message, if it is there as a whole: its type, its body, and what follows.
fn split_message(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let ([kind, length @ ..], rest) = bytes.split_first_chunk::<5>()?;
    let (body, rest) = rest.split_at_checked(left(*length, 4))?;
    Some((*kind, body, rest))
}

/// `SSLRequest` and `GSSENCRequest`.
const ENCRYPTION: [u32; 2] = [80_877_103, 80_877_104];

impl<S> Tap<S> {
    pub(super) fn new(stream: S, session: Arc<Session>) -> Self {
        let waker = session.clone().into();
        Self {
            stream,
            session,
            waker,
            is_dry: false,
            frontend: Frontend {
                started: false,
                header: Header::default(),
                body: 0,
                request: None,
                blocked: false,
            },
            backend: Backend {
                letter: false,
                header: Header::default(),
                tag: 0,
                body: 0,
                kept: Vec::new(),
                reading: false,
            },
            requests: Requests::default(),
        }
    }

    /// These bytes have gone to the server.
    fn sent(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Frontend { started, header, body, request, .. } = &mut self.frontend;
            if *body > 0 {
                skip(body, &mut bytes);
            } else if !*started {
                let Some([a, b, c, d, code @ ..]) = header.fill::<8>(&mut bytes) else { break };
                *body = left([a, b, c, d], 8);
                self.backend.letter = ENCRYPTION.contains(&u32::from_be_bytes(code));
                *started = !self.backend.letter;
                // The start of a session is answered like any request.
                if *started {
                    self.requests.push(Request::Simple);
                }
            } else if let Some([kind, length @ ..]) = header.fill::<5>(&mut bytes) {
                *body = left(length, 4);
                let begun = request.take();
                match (kind, begun) {
                    (b'Q' | b'F', _) => self.asked(Request::Simple),
                    (b'S', begun) => self.asked(begun.unwrap_or(Request::Harmless)),
                    // Passwords, the data of a copy, and the end of the session.
                    (b'p' | b'd' | b'X', begun) => *request = begun,
                    (b'f', _) => *request = Some(Request::CopyFailed),
                    (b'C', None | Some(Request::Harmless)) => *request = Some(Request::Harmless),
                    _ => *request = Some(Request::Extended),
                }
            }
        }
        self.publish();
    }

    /// A request has come to its end.
    fn asked(&mut self, request: Request) {
        self.requests.push(request);
        if request != Request::Harmless {
            self.session.count_request();
        }
    }

    /// These bytes have come from the server.
    #[inline(never)]
    fn received(&mut self, mut bytes: &[u8]) {
        loop {
            let Backend { letter, header, body, .. } = &self.backend;
            if !*letter && *body == 0 && header.count == 0 {
                bytes = self.whole(bytes);
            }
            if bytes.is_empty() {
                break;
            }
            let Backend { letter, header, tag, body, kept, .. } = &mut self.backend;
            if *letter {
                *letter = false;
                bytes = &bytes[1..];
            } else if *body > 0 {
                let part = skip(body, &mut bytes);
                if says_something(*tag) && kept.len() < MOST_KEPT {
                    kept.extend_from_slice(&part[..part.len().min(MOST_KEPT - kept.len())]);
                }
                if *body == 0 {
                    let (tag, kept) = (*tag, mem::take(kept));
                    self.ended(tag, &kept);
                }
            } else if let Some([kind, length @ ..]) = header.fill::<5>(&mut bytes) {
                (*tag, *body) = (kind, left(length, 4));
                if *body == 0 && says_something(kind) {
                    self.ended(kind, &[]);
                }
            }
        }
        self.publish();
    }

    /// Reads the messages that have come as a whole, as most do, and answers with what is left.
    fn whole<'b>(&mut self, mut bytes: &'b [u8]) -> &'b [u8] {
        while let Some((kind, body, rest)) = split_message(bytes) {
            if says_something(kind) {
                self.ended(kind, body);
            }
            bytes = rest;
        }
        bytes
    }

    /// A message from the server has come to its end.
    fn ended(&mut self, tag: u8, body: &[u8]) {
        let requests = &mut self.requests;
        match tag {
            // `ReadyForQuery`
            b'Z' => {
                let request = requests.pop();
                if matches!(request, None | Some(Request::CopyFailed)) && !requests.copying {
                    self.session.lose();
                }
                (requests.copying, requests.synced) = (false, false);
                let status = body.first().copied().unwrap_or_default();
                self.session.answered(status);
            }
            // `CopyInResponse`, `CopyBothResponse`: from here on the server ignores a `Sync` until
            // the data have ended, so one that was sent along with the statement is lost.
            b'G' | b'W' => {
                requests.copying = true;
                if requests.oldest == Some(Request::Extended) {
                    requests.synced = true;
                    requests.pop();
                }
            }
            // `ErrorResponse`: unless the server had begun to read the data, and most errors are in
            // them, that `Sync` is not lost, and has an answer of its own. Nobody can tell from here.
            b'E' if requests.synced => self.session.doubt(),
            // `CommandComplete`: what the driver has prepared is gone, and it does not know.
            b'C' if matches!(body, b"DISCARD ALL\0" | b"DEALLOCATE ALL\0") => self.session.lose(),
            // `ParameterStatus`
            b'S' => {
                let mut words = body.split(|byte| *byte == 0);
                let (name, value) = (words.next(), words.next());
                let on = value == Some(b"on");
                match name {
                    Some(b"in_hot_standby") => self.session.set_standby(on),
                    Some(b"default_transaction_read_only") => self.session.set_read_only(on),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn publish(&self) {
        let Frontend { header, body, request, blocked, .. } = &self.frontend;
        // A request that has been written in part, or not at all.
        let begun = *blocked
            || *body > 0
            || header.count > 0
            || request.is_some_and(|it| it != Request::Harmless);
        let open = u32::from(begun) + u32::from(self.backend.reading);
        self.session.publish_unanswered(self.requests.unanswered() + open);
    }
}

impl<S: Unpin> Tap<S> {
    /// Asks something of the socket. Where it has to be waited for, the driver's task is woken as soon as there
    /// is one, and not by what whoever asks for something is woken by, which would read and write at once, in
    /// the midst of the runtime's own work.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        ask: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let stream = Pin::new(&mut self.stream);
        if self.session.has_begun() {
            ask(stream, &mut Context::from_waker(&self.waker))
        } else {
            ask(stream, cx)
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The driver looks for something to read first, also where it runs because something is asked for.
        if self.is_dry && !self.session.has_arrived() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let poll = self.poll(cx, |stream, cx| stream.poll_read(cx, buffer));
        self.is_dry = poll.is_pending() && self.session.has_begun();
        match &poll {
            Poll::Ready(Ok(())) => {
                self.backend.reading = true;
                self.received(&buffer.filled()[before..]);
            }
            Poll::Pending if self.backend.reading => {
                self.backend.reading = false;
                self.publish();
            }
            Poll::Pending | Poll::Ready(Err(_)) => {}
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = self.poll(cx, |stream, cx| stream.poll_write(cx, bytes));
        self.frontend.blocked = poll.is_pending();
        match poll {
            Poll::Ready(Ok(count)) => self.sent(&bytes[..count]),
            // The server may answer what it has, before there is room for the rest.
            Poll::Pending => self.publish(),
            Poll::Ready(Err(_)) => {}
        }
        poll
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, |stream, cx| stream.poll_shutdown(cx))
    }
}

impl<S: TlsStream + Unpin> TlsStream for Tap<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

/// A TLS connector that reads along inside the encryption instead of outside of it.
pub(super) struct TapInside<T>(pub(super) T);

impl<S, T> TlsConnect<Tap<S>> for TapInside<T>
where
    T: TlsConnect<S>,
    T::Future: Send + 'static,
    T::Stream: 'static,
    T::Error: 'static,
{
    type Stream = Tap<T::Stream>;
    type Error = T::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, T::Error>> + Send>>;

    fn connect(self, outside: Tap<S>) -> Self::Future {
        let Tap { stream, session, .. } = outside;
        let connect = self.0.connect(stream);
        Box::pin(async move { Ok(Tap::new(connect.await?, session)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("a short message").to_be_bytes();
        [&[tag][..], &length, body].concat()
    }

    fn untyped(code: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 8).expect("a short message").to_be_bytes();
        [&length[..], &code.to_be_bytes(), body].concat()
    }

    fn ready(status: u8) -> Vec<u8> {
        message(b'Z', &[status])
    }

    /// What is seen of a conversation: after each part, requests without an answer, and the status.
    fn seen(parts: &[(bool, Vec<u8>)], step: usize) -> Vec<(u32, u8)> {
        let session = Arc::new(Session::new());
        let mut tap = Tap::new((), session.clone());
        let look = |session: &Session| (session.unanswered(), session.status());
        let mut seen = Vec::new();
        for (to_server, bytes) in parts {
            for piece in bytes.chunks(step) {
                if *to_server { tap.sent(piece) } else { tap.received(piece) }
            }
            seen.push(look(&session));
        }
        seen
    }

    /// The same is seen in whatever pieces the bytes come.
    fn assert_seen(parts: &[(bool, Vec<u8>)], expected: &[(u32, u8)]) {
        for step in 1..=40 {
            assert_eq!(seen(parts, step), expected, "in pieces of {step}");
        }
    }

    fn to(parts: &[&[u8]]) -> (bool, Vec<u8>) {
        (true, parts.concat())
    }

    fn from(parts: &[&[u8]]) -> (bool, Vec<u8>) {
        (false, parts.concat())
    }

    /// The start of a session, after which it is idle.
    fn started() -> [(bool, Vec<u8>); 2] {
        let start = untyped(196_608, b"user\0app\0\0");
        [(true, start), from(&[&message(b'R', &[0; 4]), &message(b'K', &[7; 8]), &ready(b'I')])]
    }

    fn after_start(parts: &[(bool, Vec<u8>)], expected: &[(u32, u8)]) {
        let all = [&started()[..], parts].concat();
        assert_seen(&all, &[&[(1, 0), (0, b'I')], expected].concat());
    }

    #[test]
    fn a_session_begins_with_a_request_for_encryption_that_is_refused() {
        let [start, answer] = started();
        assert_seen(
            &[(true, untyped(ENCRYPTION[0], b"")), (false, b"N".to_vec()), start, answer],
            &[(0, 0), (0, 0), (1, 0), (0, b'I')],
        );
    }

    #[test]
    fn a_password_is_no_request() {
        let [start, answer] = started();
        let password = message(b'p', b"secret\0");
        assert_seen(&[start, (true, password), answer], &[(1, 0), (1, 0), (0, b'I')]);
    }

    #[test]
    fn a_query_is_on_its_way_until_the_server_is_ready_and_tells_the_status() {
        let rows = message(b'D', &[b'Z'; 300]);
        after_start(
            &[
                (true, message(b'Q', b"BEGIN\0")),
                from(&[&message(b'C', b"BEGIN\0"), &ready(b'T')]),
                (true, message(b'Q', b"SELECT\0")),
                from(&[&rows, &rows]),
                from(&[&message(b'E', b"no\0"), &ready(b'E')]),
            ],
            &[(1, b'I'), (0, b'T'), (1, b'T'), (1, b'T'), (0, b'E')],
        );
    }

    #[test]
    fn requests_that_follow_each_other_are_counted_one_by_one() {
        let extended: &[u8] =
            &[message(b'B', b"bind"), message(b'E', b"run"), message(b'S', b"")].concat();
        after_start(
            &[
                to(&[extended, extended, &message(b'Q', b"SELECT\0")]),
                from(&[&ready(b'I')]),
                from(&[&ready(b'I'), &ready(b'T')]),
            ],
            &[(3, b'I'), (2, b'I'), (0, b'T')],
        );
    }

    #[test]
    fn a_request_is_on_its_way_from_its_first_byte() {
        let bind = message(b'B', &[0; 100]);
        let (first, rest) = bind.split_at(1);
        after_start(
            &[to(&[first]), to(&[rest]), to(&[&message(b'S', b"")]), from(&[&ready(b'I')])],
            &[(1, b'I'), (1, b'I'), (1, b'I'), (0, b'I')],
        );
    }

    #[test]
    fn the_end_of_a_statement_and_a_sync_bother_nobody() {
        after_start(
            &[
                to(&[&message(b'C', b"Ss0\0"), &message(b'S', b"")]),
                to(&[&message(b'S', b"")]),
                to(&[&message(b'Q', b"SELECT\0")]),
                from(&[&ready(b'I'), &ready(b'I')]),
                from(&[&ready(b'I')]),
            ],
            &[(0, b'I'), (0, b'I'), (1, b'I'), (1, b'I'), (0, b'I')],
        );
    }

    #[test]
    fn a_copy_swallows_the_sync_that_came_with_it_and_lasts_until_the_server_is_ready() {
        let sync = message(b'S', b"");
        after_start(
            &[
                to(&[&message(b'B', b"bind"), &message(b'E', b"run"), &sync]),
                from(&[&message(b'G', &[0; 3])]),
                to(&[&message(b'd', b"data"), &message(b'c', b""), &sync]),
                from(&[&message(b'C', b"COPY 1\0"), &ready(b'I')]),
            ],
            &[(1, b'I'), (1, b'I'), (2, b'I'), (0, b'I')],
        );
        // Nothing was sent along with a simple query, and its own end is still to come.
        after_start(
            &[
                to(&[&message(b'Q', b"COPY\0")]),
                from(&[&message(b'G', &[0; 3])]),
                to(&[&message(b'd', b"data")]),
                from(&[&message(b'E', b"no\0"), &ready(b'I')]),
            ],
            &[(1, b'I'), (2, b'I'), (2, b'I'), (0, b'I')],
        );
    }

    #[test]
    fn a_copy_that_is_given_up_makes_the_driver_lose_count_only_if_it_had_not_begun() {
        let sync = message(b'S', b"");
        let copy: &[u8] = &[message(b'B', b"bind"), message(b'E', b"run"), sync.clone()].concat();
        let fail: &[u8] = &[message(b'f', b"\0"), sync].concat();
        let error: &[u8] = &[message(b'E', b"no\0"), ready(b'I')].concat();
        let refused = [to(&[copy]), from(&[error]), to(&[fail]), from(&[&ready(b'I')])];
        let begun = [to(&[copy]), from(&[&message(b'G', &[0; 3])]), to(&[fail]), from(&[error])];
        // It is given up before the server's answer is there.
        let early = [to(&[copy, fail]), from(&[&message(b'G', &[0; 3]), error])];
        for (parts, lost) in [(&refused[..], true), (&begun[..], false), (&early[..], false)] {
            let session = Arc::new(Session::new());
            let mut tap = Tap::new((), session.clone());
            for (to_server, bytes) in started().iter().chain(parts) {
                if *to_server { tap.sent(bytes) } else { tap.received(bytes) }
            }
            assert_eq!(session.unanswered(), 0);
            assert_eq!(session.is_lost(), lost);
        }
    }

    #[test]
    fn an_error_in_a_copy_leaves_it_open_whether_the_sync_that_came_with_it_is_answered() {
        let sync = message(b'S', b"");
        let copy: &[u8] = &[message(b'B', b"bind"), message(b'E', b"run"), sync.clone()].concat();
        let data: &[u8] = &[message(b'd', b"data"), message(b'c', b""), sync].concat();
        let begins = [to(&[copy]), from(&[&message(b'G', &[0; 3])]), to(&[data])];
        let error = message(b'E', b"no\0");
        let fails = from(&[&error, &ready(b'I')]);
        let succeeds = from(&[&message(b'C', b"COPY 1\0"), &ready(b'I')]);
        let query = [to(&[&message(b'Q', b"QUERY\0")]), from(&[&error, &ready(b'I')])];
        for (end, in_doubt) in [(fails, true), (succeeds, false)] {
            let session = Arc::new(Session::new());
            let mut tap = Tap::new((), session.clone());
            let after = if in_doubt { &[][..] } else { &query };
            for (to_server, bytes) in started().iter().chain(&begins).chain([&end]).chain(after) {
                if *to_server { tap.sent(bytes) } else { tap.received(bytes) }
            }
            assert_eq!(session.unanswered(), 0);
            assert_eq!(session.is_in_doubt(), in_doubt);
            assert!(!session.is_lost());
            // What nobody has asked for is the answer that was in doubt.
            tap.received(&ready(b'I'));
            assert!(session.is_lost());
        }
    }

    /// Has so many bytes to read.
    struct Arrived(Vec<u8>);

    impl AsyncRead for Arrived {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.0.is_empty() {
                return Poll::Pending;
            }
            buffer.put_slice(&mem::take(&mut self.0));
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn what_arrives_calls_the_drivers_task_and_nobody_who_asks() {
        struct Asks(AtomicBool);

        impl Wake for Asks {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }

        let session = Arc::new(Session::new());
        let (mut server, socket) = tokio::io::duplex(16);
        let mut tap = Tap::new(socket, session.clone());
        let asks = Arc::new(Asks(AtomicBool::new(false)));
        let waker = Waker::from(asks.clone());
        let mut read = || {
            let mut bytes = [0; 1];
            let mut buffer = ReadBuf::new(&mut bytes);
            Pin::new(&mut tap).poll_read(&mut Context::from_waker(&waker), &mut buffer).is_ready()
        };
        let mut send = || {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut server).poll_write(&mut cx, b"N").is_ready());
        };
        assert!(!read());
        send();
        assert!(asks.0.swap(false, Ordering::Relaxed), "there is no task yet, but who connects");
        assert!(read());

        session.run_in(Waker::noop());
        let calls = session.begin_run();
        assert!(!read());
        session.end_run(calls);
        send();
        assert!(!asks.0.load(Ordering::Relaxed), "whoever asks would read it");
        assert!(!session.rests(), "the task has been called");
    }

    /// Has nothing to read, and counts how often it is asked.
    #[derive(Default)]
    struct Empty {
        polls: u32,
        waker: Option<Waker>,
    }

    impl AsyncRead for Empty {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.polls += 1;
            self.waker = Some(cx.waker().clone());
            Poll::Pending
        }
    }

    #[test]
    fn a_socket_that_is_empty_is_left_alone_until_it_calls() {
        let session = Arc::new(Session::new());
        let mut tap = Tap::new(Empty::default(), session.clone());
        let read = |tap: &mut Tap<Empty>| {
            let (mut cx, mut bytes) = (Context::from_waker(Waker::noop()), [0]);
            let poll = Pin::new(&mut *tap).poll_read(&mut cx, &mut ReadBuf::new(&mut bytes));
            assert!(poll.is_pending());
            tap.stream.polls
        };
        assert_eq!(read(&mut tap), 1);
        assert_eq!(read(&mut tap), 2, "it calls whoever connects, and not the session");
        session.run_in(Waker::noop());
        assert_eq!(read(&mut tap), 3, "it has still to be told whom to call");
        assert_eq!(read(&mut tap), 3);
        session.call();
        assert_eq!(read(&mut tap), 3, "that was somebody who asks for something");
        tap.stream.waker.take().expect("it has been polled").wake();
        assert_eq!(read(&mut tap), 4);
        assert_eq!(read(&mut tap), 4);
    }

    #[test]
    fn an_answer_is_on_its_way_until_the_driver_asks_for_more() {
        let session = Arc::new(Session::new());
        let mut tap = Tap::new(Arrived(Vec::new()), session.clone());
        for (to_server, bytes) in started() {
            if to_server { tap.sent(&bytes) } else { tap.received(&bytes) }
        }
        tap.sent(&message(b'Q', b"SELECT\0"));
        tap.stream.0 = ready(b'I');
        let mut bytes = [0; 64];
        let mut read = |tap: &mut Tap<Arrived>| {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            Pin::new(tap).poll_read(&mut cx, &mut ReadBuf::new(&mut bytes)).is_ready()
        };
        assert!(read(&mut tap));
        assert_eq!(session.unanswered(), 1, "whoever is to read it may keep the driver waiting");
        assert!(!read(&mut tap));
        assert_eq!(session.unanswered(), 0);
    }

    /// Has room for so many bytes.
    struct Room(usize);

    impl AsyncWrite for Room {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.0);
            self.0 -= count;
            if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_request_for_which_there_is_no_room_is_on_its_way() {
        let session = Arc::new(Session::new());
        let mut tap = Tap::new(Room(0), session.clone());
        for (to_server, bytes) in started() {
            if to_server { tap.sent(&bytes) } else { tap.received(&bytes) }
        }
        let [first, second] = [b"BEGIN\0", b"QUERY\0"].map(|query| message(b'Q', query));
        let both = [&first[..], &second].concat();
        tap.stream.0 = first.len();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut write = |tap: &mut Tap<Room>, bytes: &[u8]| {
            let poll = Pin::new(tap).poll_write(&mut cx, bytes);
            poll.map(|written| written.expect("nothing fails"))
        };
        assert_eq!(write(&mut tap, &both), Poll::Ready(first.len()));
        assert_eq!(write(&mut tap, &second), Poll::Pending);
        tap.received(&ready(b'T'));
        assert_eq!(session.unanswered(), 1, "the second one has not even been written");
        tap.stream.0 = second.len();
        assert_eq!(write(&mut tap, &second), Poll::Ready(second.len()));
        assert_eq!(session.unanswered(), 1);
        tap.received(&ready(b'T'));
        assert_eq!(session.unanswered(), 0);
    }

    #[test]
    fn the_server_says_whether_it_takes_writes() {
        let session = Arc::new(Session::new());
        let mut tap = Tap::new((), session.clone());
        let mut says = |parameter: &[u8]| {
            for piece in message(b'S', parameter).chunks(3) {
                tap.received(piece);
            }
            session.is_writable()
        };
        assert_eq!(says(b"TimeZone\0UTC\0"), None);
        assert_eq!(says(b"in_hot_standby\0off\0"), None, "that alone does not settle it");
        assert_eq!(says(b"default_transaction_read_only\0off\0"), Some(true));
        assert_eq!(says(b"default_transaction_read_only\0on\0"), Some(false));
        assert_eq!(says(b"default_transaction_read_only\0off\0"), Some(true));
        assert_eq!(says(b"in_hot_standby\0on\0"), Some(false));
        assert_eq!(says(&[b"application_name\0", &[b'x'; 1000][..], b"\0"].concat()), Some(false));
    }

    #[test]
    fn only_requests_that_change_something_count() {
        let session = Arc::new(Session::new());
        let mut tap = Tap::new((), session.clone());
        for (_, bytes) in &started()[..1] {
            tap.sent(bytes);
        }
        let before = session.requests();
        tap.sent(&message(b'S', b""));
        tap.sent(&[message(b'C', b"Ss0\0"), message(b'S', b"")].concat());
        assert_eq!(session.requests(), before);
        tap.sent(&[message(b'P', b"parse"), message(b'C', b"Ss0\0"), message(b'S', b"")].concat());
        tap.sent(&message(b'Q', b"SELECT\0"));
        assert_eq!(session.requests(), before + 2);
    }
}
