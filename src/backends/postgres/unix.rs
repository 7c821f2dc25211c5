//! A Unix socket that says when there is something to read, and not each time that it could be
//! written to.
//!
//! Linux reports a Unix socket as writable whenever the peer has read something from it. Tokio's
//! stream asks for that all the time, so every request wakes the runtime a second time, when the
//! server takes it up. This one asks only while there is no room.
//!
//! Not here: which socket is opened, and when (`dial.rs`).

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// How much is read at once: as much as the driver has room for when it is between two answers.
const MOST: usize = 8 * 1024;

/// Has the runtime tell of this and nothing else.
#[allow(
    deprecated,
    reason = "sound for a stream, which owns its descriptor; what replaces it is unsafe"
)]
fn register(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(stream, interest)
}

pub(super) struct UnixSocket {
    stream: AsyncFd<UnixStream>,
    /// Whoever has read last, and found nothing.
    reader: Option<Reader>,
    /// A second handle on the socket, while it is full: it tells when there is room again.
    full: Option<AsyncFd<UnixStream>>,
    /// What is read goes through here: a caller's buffer has yet to be initialised, and to do that
    /// for all of it costs more than to copy what has come.
    bytes: Box<[u8]>,
}

impl UnixSocket {
    /// Within a runtime that has its I/O enabled.
    pub(super) fn new(stream: tokio::net::UnixStream) -> io::Result<Self> {
        let stream = register(stream.into_std()?, Interest::READABLE)?;
        Ok(Self { stream, reader: None, full: None, bytes: vec![0; MOST].into() })
    }
}

/// Somebody who waits for something to read.
///
/// The driver comes by for each request that it is to write, and would register anew each time: that
/// takes a lock twice and finds nothing. So the runtime tells this instead of him, and this knows
/// whether there is anything to look for.
struct Reader {
    told: Arc<Told>,
    /// Tells `told`.
    waker: Waker,
}

struct Told {
    /// There may be something to read.
    anything: AtomicBool,
    reader: Waker,
}

impl Reader {
    fn new(reader: &Waker) -> Self {
        let told = Arc::new(Told { anything: AtomicBool::new(true), reader: reader.clone() });
        Self { waker: Waker::from(told.clone()), told }
    }
}

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Ordering: Release, partner: the load in `poll_read`, which then finds the runtime's word that
        // the socket can be read.
        self.anything.store(true, Ordering::Release);
        self.reader.wake_by_ref();
    }
}

impl AsyncRead for UnixSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, reader, bytes, .. } = &mut *self;
        if !reader.as_ref().is_some_and(|it| it.told.reader.will_wake(cx.waker())) {
            *reader = None;
        }
        let Reader { told, waker } = reader.get_or_insert_with(|| Reader::new(cx.waker()));
        // Ordering: Acquire, partner: `wake_by_ref`.
        if !told.anything.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        let most = bytes.len().min(buffer.remaining());
        loop {
            // Before it is registered: whatever comes after that is told.
            told.anything.store(false, Ordering::Relaxed);
            let ready = ready!(stream.poll_read_ready(&mut Context::from_waker(waker)));
            told.anything.store(true, Ordering::Relaxed);
            let mut ready = ready?;
            match ready.get_inner().read(&mut bytes[..most]) {
                Ok(count) => {
                    // Fewer than there is room for are all there are. The end of the stream stays.
                    if 0 < count && count < most {
                        ready.clear_ready();
                    }
                    buffer.put_slice(&bytes[..count]);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for UnixSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, full, .. } = &mut *self;
        loop {
            let room = match full {
                Some(full) => Some(ready!(full.poll_write_ready(cx))?),
                None => None,
            };
            match stream.get_ref().write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => match room {
                    Some(mut room) => room.clear_ready(),
                    None => {
                        let handle = stream.get_ref().try_clone()?;
                        *full = Some(register(handle, Interest::WRITABLE)?);
                    }
                },
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                written => {
                    *full = None;
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    fn pair() -> (UnixSocket, tokio::net::UnixStream) {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        (UnixSocket::new(ours).unwrap(), theirs)
    }

    /// Bytes of which none can be missing or in the wrong place without notice.
    fn pattern(count: usize) -> Vec<u8> {
        (0..count).map(|index| (index % 251) as u8).collect()
    }

    #[tokio::test]
    async fn it_waits_for_room_and_everything_arrives() {
        let (mut ours, mut theirs) = pair();
        let sent = pattern(4 << 20);
        let write = tokio::spawn(async move {
            ours.write_all(&sent).await.unwrap();
            assert!(ours.full.is_none(), "it would be told of room all the time");
            ours.shutdown().await.unwrap();
            ours
        });
        // There is no room for all of it.
        let mut first = [0; 1];
        theirs.read_exact(&mut first).await.unwrap();
        assert!(!write.is_finished());
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).await.unwrap();
        assert!([&first[..], &rest].concat() == pattern(4 << 20), "something else has arrived");
        write.await.unwrap();
    }

    #[tokio::test]
    async fn it_reads_everything_to_the_end() {
        let (mut ours, mut theirs) = pair();
        tokio::spawn(async move { theirs.write_all(&pattern(4 << 20)).await.unwrap() });
        let mut read = Vec::new();
        ours.read_to_end(&mut read).await.unwrap();
        assert!(read == pattern(4 << 20), "something else has arrived");
        // The end stays the end.
        assert_eq!(ours.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn each_answer_wakes_it() {
        let (mut ours, mut theirs) = pair();
        let echo = tokio::spawn(async move {
            let mut bytes = [0; 100];
            for _ in 0..1_000 {
                theirs.read_exact(&mut bytes[..10]).await.unwrap();
                theirs.write_all(&bytes[..10]).await.unwrap();
            }
        });
        for turn in 0..1_000_u32 {
            let sent = [&turn.to_be_bytes()[..], b"answer"].concat();
            ours.write_all(&sent).await.unwrap();
            let mut answer = [0; 10];
            let read = ours.read_exact(&mut answer);
            timeout(Duration::from_secs(60), read).await.expect("nobody woke it").unwrap();
            assert_eq!(answer, &sent[..]);
        }
        echo.await.unwrap();
    }

    #[derive(Default)]
    struct Wakes(AtomicBool);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// Reads once; `None` if there is nothing.
    fn read_now(socket: &mut UnixSocket, waker: &Waker) -> Option<Vec<u8>> {
        let mut bytes = [0; 100];
        let mut buffer = ReadBuf::new(&mut bytes);
        let read = Pin::new(socket).poll_read(&mut Context::from_waker(waker), &mut buffer);
        read.is_ready().then(|| buffer.filled().to_vec())
    }

    #[tokio::test]
    async fn whoever_has_read_last_is_told() {
        let (mut ours, mut theirs) = pair();
        let readers = [(); 2].map(|()| Arc::new(Wakes::default()));
        let wakers = readers.each_ref().map(|reader| Waker::from(reader.clone()));
        for (last, before) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            for reader in [before, last, last] {
                assert_eq!(read_now(&mut ours, &wakers[reader]), None);
            }
            theirs.write_all(b"answer").await.unwrap();
            let told = || readers[last].0.swap(false, Ordering::SeqCst);
            timeout(Duration::from_secs(60), async {
                while !told() {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("nobody woke it");
            assert_eq!(read_now(&mut ours, &wakers[last]).as_deref(), Some(&b"answer"[..]));
        }
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_an_error() {
        let (mut ours, theirs) = pair();
        drop(theirs);
        assert_eq!(ours.write(b"hello").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn it_is_not_told_of_room_that_nobody_waits_for() {
        let (mut ours, mut theirs) = pair();
        ours.write_all(b"request").await.unwrap();
        theirs.read_exact(&mut [0; 7]).await.unwrap();
        let told = ours.stream.ready(Interest::WRITABLE);
        assert!(timeout(Duration::from_millis(20), told).await.is_err(), "an event for nothing");
    }
}
