//! The open files of the stand-in for an agent.

use std::collections::{HashMap, HashSet};
use std::fs::{File, TryLockError};
use std::io::{Error, Read, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandstone_protocol::message::{
    Answer, FileKind, HandleId, HandleOperation, OpenOptions, Reply, Request, SeekOrigin,
};
use tokio::time::sleep;

use super::agent::failure;

#[derive(Debug, Default)]
pub(super) struct OpenFiles(
    Mutex<HashMap<HandleId, Arc<File>>>,
    Mutex<HashSet<HandleId>>,
);

impl OpenFiles {
    pub(super) async fn answer(&self, request: Request) -> Reply {
        let bad = || failure(&Error::from_raw_os_error(9));
        match request {
            Request::Open {
                handle,
                path,
                options,
            } => {
                let file = open(&path, options).map_err(|error| failure(&error))?;
                self.0.lock().unwrap().insert(handle, Arc::new(file));
                let kind = FileKind::File;
                Ok(Answer::Opened { kind })
            }
            Request::Close { handles } => {
                let mut files = self.0.lock().unwrap();
                let closed = handles.iter().filter(|id| files.remove(id).is_some());
                if closed.count() == handles.len() {
                    Ok(Answer::Done)
                } else {
                    Err(bad())
                }
            }
            Request::Handle { handle, operation } => {
                let file = self.get(handle).ok_or_else(bad)?;
                match operation {
                    HandleOperation::Lock { .. } => {
                        drop(file);
                        return self.lock(handle).await;
                    }
                    HandleOperation::Unlock => drop(self.1.lock().unwrap().remove(&handle)),
                    _ => {}
                }
                operate(&file, operation).map_err(|error| failure(&error))
            }
            other => panic!("unexpected request {other:?}"),
        }
    }

    fn get(&self, handle: HandleId) -> Option<Arc<File>> {
        self.0.lock().unwrap().get(&handle).cloned()
    }

    async fn lock(&self, handle: HandleId) -> Reply {
        self.1.lock().unwrap().insert(handle);
        loop {
            if !self.1.lock().unwrap().contains(&handle) {
                return Err(failure(&Error::from_raw_os_error(125)));
            }
            match self.get(handle).map(|file| file.try_lock()) {
                Some(Ok(())) => return Ok(Answer::Done),
                Some(Err(TryLockError::WouldBlock)) => sleep(Duration::from_millis(1)).await,
                _ => return Err(failure(&Error::from_raw_os_error(125))),
            }
        }
    }
}

fn open(path: &str, options: OpenOptions) -> std::io::Result<File> {
    File::options()
        .read(options.read)
        .write(options.write)
        .append(options.append)
        .truncate(options.truncate)
        .create(options.create)
        .create_new(options.create_new)
        .open(path)
}

fn operate(mut file: &File, operation: HandleOperation) -> std::io::Result<Answer> {
    Ok(match operation {
        HandleOperation::Read { length } => {
            let mut bytes = vec![0; length as usize];
            let length = file.read(&mut bytes)?;
            bytes.truncate(length);
            Answer::Bytes(bytes)
        }
        HandleOperation::Write { bytes } => {
            file.write_all(&bytes)?;
            let bytes = bytes.len().try_into().unwrap();
            Answer::Written { bytes }
        }
        HandleOperation::Seek { offset, origin } => Answer::Position(file.seek(match origin {
            SeekOrigin::Start => SeekFrom::Start(offset.try_into().unwrap()),
            SeekOrigin::Current => SeekFrom::Current(offset),
            SeekOrigin::End => SeekFrom::End(offset),
        })?),
        HandleOperation::Truncate { length } => {
            file.set_len(length)?;
            Answer::Done
        }
        HandleOperation::Unlock => {
            file.unlock()?;
            Answer::Done
        }
        other => panic!("unexpected operation {other:?}"),
    })
}
