//! The body of an answer: bytes at hand or a range of a file, read as it is sent, with what goes wrong on the way. Reading blocks, which
//! is right here: a connection has a thread of its own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};

use super::fault::FaultKind;

/// Bytes that are read and sent at once.
const CHUNK: u64 = 256 << 10;

/// Where bytes come from, and how far the answer is.
pub(super) struct Answer {
    source: Source,
    at: u64,
    end: u64,
    sent: u64,
    fault: Option<FaultKind>,
    /// The connection, to make a reset out of a close.
    socket: Arc<std::net::TcpStream>,
    counter: Option<Arc<AtomicU64>>,
}

enum Source {
    Bytes(Bytes),
    File(File),
}

impl Answer {
    pub(super) fn bytes(content: impl Into<Bytes>, socket: Arc<std::net::TcpStream>) -> Self {
        let content = content.into();
        let end = content.len() as u64;
        Self { source: Source::Bytes(content), at: 0, end, sent: 0, fault: None, socket, counter: None }
    }

    /// The range of a file, counted in `counter` as it is sent.
    pub(super) fn file(
        file: File,
        (at, end): (u64, u64),
        fault: Option<FaultKind>,
        socket: Arc<std::net::TcpStream>,
        counter: Arc<AtomicU64>,
    ) -> Self {
        Self { source: Source::File(file), at, end, sent: 0, fault, socket, counter: Some(counter) }
    }

    /// Bytes to send before something goes wrong.
    fn limit(&self) -> u64 {
        match self.fault {
            Some(FaultKind::Reset(bytes) | FaultKind::Truncate(bytes) | FaultKind::Stall(bytes, _)) => {
                bytes.saturating_sub(self.sent)
            }
            _ => u64::MAX,
        }
    }

    fn fail(&mut self) -> io::Result<()> {
        match self.fault.take() {
            Some(FaultKind::Reset(_)) => {
                // Closing with unsent data thrown away is what sends a reset.
                rustix::net::sockopt::set_socket_linger(&*self.socket, Some(std::time::Duration::ZERO))?;
                Err(io::ErrorKind::ConnectionReset.into())
            }
            Some(FaultKind::Truncate(_)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(FaultKind::Stall(_, time)) => {
                std::thread::sleep(time);
                Ok(())
            }
            other => {
                self.fault = other;
                Ok(())
            }
        }
    }

    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.limit() == 0 {
            self.fail()?;
        }
        let length = (self.end - self.at).min(CHUNK).min(self.limit());
        if length == 0 {
            return Ok(None);
        }
        let chunk = match &self.source {
            Source::Bytes(bytes) => bytes.slice(self.at as usize..(self.at + length) as usize),
            Source::File(file) => {
                let mut chunk = vec![0; length as usize];
                file.read_exact_at(&mut chunk, self.at)?;
                if let Some(FaultKind::WrongByte(offset)) = self.fault
                    && (self.sent..self.sent + length).contains(&offset)
                {
                    chunk[(offset - self.sent) as usize] ^= 1;
                }
                chunk.into()
            }
        };
        self.at += length;
        self.sent += length;
        if let Some(counter) = &self.counter {
            counter.fetch_add(length, Ordering::Relaxed);
        }
        Ok(Some(chunk))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(self.next().map(|chunk| chunk.map(Frame::data)).transpose())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.at)
    }
}
