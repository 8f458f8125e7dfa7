//! The admin queue: commands about queues are carried out here, the others by the firmware.
//!
//! A command whose work grows with a map or a ring takes several steps, as those of the
//! firmware do, so that the other queues and the host's register accesses get their turn.

use crate::device::{Device, PIECE_COST};
use crate::dma::Host;
use crate::faults::Fetched;
use crate::queue::{Coalescing, Found, Queue, QueueSpec, Search, Stop};
use offmap_abi::admin::{AbortBody, QueueCreateBody, QueueDeleteBody};
use offmap_abi::ring::RingDepth;
use offmap_abi::{AdminOpcode, Completion, QueueId, RequestId, Status, Submission};
use offmap_firmware_model::Progress;

/// Place of the admin queue among [`Device::queues`], while the device runs.
const ADMIN: usize = 0;

/// An admin command that takes several steps. Its completion has a place since it was
/// fetched; no further admin command is fetched meanwhile.
#[derive(Debug)]
pub(crate) enum AdminWork {
    /// A command of the firmware.
    Firmware,
    /// QUEUE_DELETE, with how many commands it may still complete as aborted.
    Delete {
        request: RequestId,
        queue: QueueId,
        left: u32,
    },
    /// ABORT, on its way through the ring.
    Abort {
        request: RequestId,
        queue: QueueId,
        target: RequestId,
        search: Search,
    },
}

impl Device {
    /// Runs the next admin command, or its first piece; what that cost.
    pub(crate) fn serve_admin(&mut self) -> Result<u32, Stop> {
        if self.admin_work.is_some() {
            return Ok(0);
        }
        let Some(words) = self.queues[ADMIN].fetch(&self.dma, &self.doorbells)? else {
            return Ok(0);
        };
        let mut command = Submission::from_words(words);
        if self.faults.is_some() {
            match self.fetch_with_faults(QueueId::ADMIN, words)? {
                Fetched::Run(fetched) => command = fetched,
                Fetched::Answer(completion) => {
                    self.complete_admin(completion)?;
                    return Ok(PIECE_COST);
                }
                Fetched::Lost => return Ok(PIECE_COST),
            }
        }
        let request = command.request();
        let answer = match AdminOpcode(command.opcode) {
            AdminOpcode::QueueCreate => Some(self.queue_create(&command)),
            AdminOpcode::QueueDelete => self.queue_delete(&command),
            AdminOpcode::Abort => self.abort(&command),
            _ => {
                let progress = match self.faults.is_some() {
                    true => self.admin_with_faults(&command)?,
                    false => Some(self.firmware.admin(&command, &mut Host(&mut self.dma))),
                };
                if let Some(progress) = progress {
                    self.admin_progress(progress)?;
                }
                return Ok(PIECE_COST);
            }
        };
        match answer {
            Some(status) => self.complete_admin(Completion::new(request, status))?,
            None => self.resume_admin()?,
        }
        Ok(PIECE_COST)
    }

    /// Does the next piece of the admin command under way, if there is one.
    pub(crate) fn resume_admin(&mut self) -> Result<(), Stop> {
        let (request, answer) = match self.admin_work.take() {
            None => return Ok(()),
            Some(AdminWork::Firmware) => {
                let progress = self.firmware.resume(&mut Host(&mut self.dma));
                return self.admin_progress(progress);
            }
            Some(AdminWork::Delete {
                request,
                queue,
                left,
            }) => (request, self.delete_on(request, queue, left)),
            Some(AdminWork::Abort {
                request,
                queue,
                target,
                search,
            }) => (request, self.abort_on(request, queue, target, search)),
        };
        match answer {
            Some(status) => self.complete_admin(Completion::new(request, status)),
            None => Ok(()),
        }
    }

    fn admin_progress(&mut self, progress: Progress) -> Result<(), Stop> {
        match progress {
            Progress::Done(completion) => self.complete_admin(completion),
            Progress::More => {
                self.admin_work = Some(AdminWork::Firmware);
                Ok(())
            }
        }
    }

    fn complete_admin(&mut self, completion: Completion) -> Result<(), Stop> {
        self.post_and_announce(ADMIN, completion)
    }

    fn post_and_announce(&mut self, index: usize, completion: Completion) -> Result<(), Stop> {
        if self.faults.is_some() {
            self.post_with_faults(index, completion)?;
        } else {
            self.queues[index].post(&self.dma, completion)?;
        }
        self.announce(index)
    }

    /// QUEUE_CREATE (abi §6.2). The queue's doorbells start from zero.
    fn queue_create(&mut self, command: &Submission) -> Status {
        let body: QueueCreateBody = command.body();
        let reserved = body.reserved3.get() | u64::from(body.reserved.get());
        if !is_plain(command) || reserved != 0 {
            return Status::InvalidField;
        }
        let id = QueueId(body.queue.get());
        if !(1..=self.queue_pairs).contains(&id.0) || self.find(id).is_some() {
            return Status::InvalidQueue;
        }
        let Some(depth) = RingDepth::new(body.depth.get()) else {
            return Status::InvalidField;
        };
        let spec = QueueSpec {
            id,
            depth,
            vector: body.vector.get(),
            coalescing: Coalescing {
                count: body.coalesce_count.get(),
                us: body.coalesce_us.get(),
            },
            sq: body.sq.get(),
            cq: body.cq.get(),
            notify: body.notify.get(),
        };
        if !spec.is_valid(self.queue_depth_max, self.msix.vectors()) {
            return Status::InvalidField;
        }
        if spec.check_memory(&self.dma).is_err() {
            return Status::DmaFault;
        }
        self.clear_doorbells(id);
        self.queues.push(Queue::new(&spec));
        Status::Success
    }

    /// QUEUE_DELETE (abi §6.2). The command under way is given up and completes as
    /// interrupted; what the queue has published and not fetched completes as aborted, as far
    /// as its completion ring has room and can be reached. The rest ends with the queue, which
    /// the completion of this command tells the host. `None`: there are pieces to do.
    fn queue_delete(&mut self, command: &Submission) -> Option<Status> {
        let body: QueueDeleteBody = command.body();
        if !is_plain(command) || body.reserved != [0; 46] {
            return Some(Status::InvalidField);
        }
        let queue = QueueId(body.queue.get());
        let Some(index) = self.find(queue).filter(|_| !queue.is_admin()) else {
            return Some(Status::InvalidQueue);
        };
        if let Err(stop) = self.interrupt_command(index) {
            self.halt(index, stop);
        }
        self.queues[index].close();
        self.admin_work = Some(AdminWork::Delete {
            request: command.request(),
            queue,
            left: self.queues[index].depth().entries(),
        });
        None
    }

    fn delete_on(&mut self, request: RequestId, queue: QueueId, left: u32) -> Option<Status> {
        // Only this command takes queues away.
        let Some(index) = self.find(queue) else {
            return Some(Status::InvalidQueue);
        };
        let q = &mut self.queues[index];
        if !q.is_stopped() {
            let most = left.min(self.turns.entries);
            // A ring out of reach or out of order is no reason to keep the queue: it is what
            // the host may be deleting it for.
            let done = q.abort_next(&self.dma, &self.doorbells, most).unwrap_or(0);
            if done == most && left > most {
                self.admin_work = Some(AdminWork::Delete {
                    request,
                    queue,
                    left: left - most,
                });
                return None;
            }
            if let Some(vector) = q.announce_last(&self.dma) {
                self.raise(Some(queue), vector);
            }
        }
        self.queues.remove(index);
        if let Some(engine) = self.faults.as_deref_mut() {
            engine.forget_queue(queue);
        }
        if let Some(meter) = self.timing.as_deref_mut() {
            meter.forget(queue.0);
        }
        Some(Status::Success)
    }

    /// ABORT (abi §6.5). A command under way is given up and completes as interrupted; one
    /// that is published and not fetched completes as aborted in its turn. `None`: there are
    /// pieces to do.
    fn abort(&mut self, command: &Submission) -> Option<Status> {
        let body: AbortBody = command.body();
        if !is_plain(command) || body.reserved != [0; 38] {
            return Some(Status::InvalidField);
        }
        let queue = QueueId(body.queue.get());
        let Some(index) = self.find(queue).filter(|_| !queue.is_admin()) else {
            return Some(Status::InvalidQueue);
        };
        let target = RequestId(body.request.get());
        self.admin_work = Some(AdminWork::Abort {
            request: command.request(),
            queue,
            target,
            search: self.queues[index].search(target),
        });
        None
    }

    fn abort_on(
        &mut self,
        request: RequestId,
        queue: QueueId,
        target: RequestId,
        mut search: Search,
    ) -> Option<Status> {
        let Some(index) = self.find(queue) else {
            return Some(Status::InvalidQueue);
        };
        if self.queues[index].is_stopped() {
            return Some(Status::QueueStopped);
        }
        let found = if self.queues[index].under_way() == Some(target) {
            self.interrupt_command(index).map(|()| Found::Yes)
        } else {
            self.queues[index].search_on(&self.dma, &mut search, self.turns.entries)
        };
        match found {
            Ok(Found::Yes) => Some(Status::Success),
            Ok(Found::No) => Some(Status::NotFound),
            Ok(Found::NotYet) => {
                self.admin_work = Some(AdminWork::Abort {
                    request,
                    queue,
                    target,
                    search,
                });
                None
            }
            Err(stop) => {
                self.halt(index, stop);
                Some(Status::QueueStopped)
            }
        }
    }

    /// Gives up the command under way of a queue, which completes as interrupted.
    fn interrupt_command(&mut self, index: usize) -> Result<(), Stop> {
        let queue = &mut self.queues[index];
        let Some(request) = queue.under_way() else {
            return Ok(());
        };
        let known = self.firmware.abandon_io(queue.id().0);
        debug_assert!(known, "the firmware knows what the queue has under way");
        queue.set_under_way(None);
        self.post_and_announce(index, Completion::new(request, Status::Interrupted))
    }

    fn find(&self, id: QueueId) -> Option<usize> {
        self.queues.iter().position(|q| q.id() == id)
    }
}

/// Whether the header of a command that needs only operands has nothing else in it.
fn is_plain(command: &Submission) -> bool {
    command.flags == 0 && command.map.get() == 0 && command.phase.get() & !1 == 0
}
