//! What can go wrong on purpose, and how often. It must not know how.

use std::time::Duration;

/// Something that goes wrong with a request for a file.
#[derive(Clone, Debug, PartialEq)]
pub enum FaultKind {
    /// An answer with this status, and `Retry-After` if there is one.
    Status(u16, Option<String>),
    /// The connection is reset after that many bytes of the body.
    Reset(u64),
    /// The connection is closed in good order after that many bytes of the body.
    Truncate(u64),
    /// Nothing more comes for that time after that many bytes of the body; then the rest.
    Stall(u64, Duration),
    /// One bit of the body is wrong, at that offset from its start.
    WrongByte(u64),
    /// Another `ETag` and `X-Linked-Etag` than the listing has.
    OtherEtag,
    /// The whole file, with 200, whatever range was asked for.
    WholeFile,
    /// The range that begins one byte later than the one that was asked for.
    WrongRange,
    /// Fewer bytes than were asked for, and a `Content-Length` that says so.
    ShortAnswer,
    /// A page of HTML with 200 in place of the content.
    ErrorPage,
}

/// A fault, where it happens, and how often.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Requests whose path holds this text.
    pub path: String,
    /// What goes wrong with them.
    pub kind: FaultKind,
    /// Requests that it happens to before things are well again.
    pub times: usize,
    /// Requests that go well before.
    pub after: usize,
}

impl Fault {
    /// A fault that happens once.
    pub fn once(path: &str, kind: FaultKind) -> Self {
        Self { path: path.into(), kind, times: 1, after: 0 }
    }

    /// A fault that happens that often.
    pub fn times(path: &str, kind: FaultKind, times: usize) -> Self {
        Self { times, ..Self::once(path, kind) }
    }

    /// The same fault after that many requests that go well.
    pub fn after(self, requests: usize) -> Self {
        Self { after: requests, ..self }
    }
}

/// Takes the fault that happens to a request for `path`, if one does.
pub(super) fn take(faults: &mut Vec<Fault>, path: &str) -> Option<FaultKind> {
    let index = faults.iter().position(|fault| path.contains(&fault.path))?;
    let fault = &mut faults[index];
    if fault.after > 0 {
        fault.after -= 1;
        return None;
    }
    fault.times = fault.times.saturating_sub(1);
    let kind = fault.kind.clone();
    if fault.times == 0 {
        faults.remove(index);
    }
    Some(kind)
}
