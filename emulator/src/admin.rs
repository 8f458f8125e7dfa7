//! The admin queue: commands about queues are carried out here, the others by the firmware.

use crate::device::Device;
use crate::dma::Host;
use crate::queue::{Queue, QueueSpec};
use offmap_abi::admin::{AbortBody, QueueCreateBody, QueueDeleteBody};
use offmap_abi::regs::FatalCause;
use offmap_abi::{AdminOpcode, Completion, QueueId, RequestId, Status, Submission};
use offmap_firmware_model::Progress;

/// Place of the admin queue among [`Device::queues`], while the device runs.
const ADMIN: usize = 0;

impl Device {
    /// Runs the next admin command, or its first piece; whether there was one.
    pub(crate) fn serve_admin(&mut self) -> Result<bool, FatalCause> {
        if self.admin_under_way {
            return Ok(false);
        }
        let Some(command) = self.queues[ADMIN].fetch(&self.dma, &self.doorbells)? else {
            return Ok(false);
        };
        let status = match AdminOpcode(command.opcode) {
            AdminOpcode::QueueCreate => self.queue_create(&command),
            AdminOpcode::QueueDelete => self.queue_delete(&command),
            AdminOpcode::Abort => self.abort(&command)?,
            _ => {
                let progress = self.firmware.admin(&command, &mut Host(&mut self.dma));
                self.admin_progress(progress)?;
                return Ok(true);
            }
        };
        self.complete_admin(Completion::new(command.request(), status))?;
        Ok(true)
    }

    /// Does the next piece of the admin command under way.
    pub(crate) fn resume_admin(&mut self) -> Result<(), FatalCause> {
        let progress = self.firmware.resume(&mut Host(&mut self.dma));
        self.admin_progress(progress)
    }

    fn admin_progress(&mut self, progress: Progress) -> Result<(), FatalCause> {
        self.admin_under_way = progress == Progress::More;
        match progress {
            Progress::Done(completion) => self.complete_admin(completion),
            Progress::More => Ok(()),
        }
    }

    fn complete_admin(&mut self, completion: Completion) -> Result<(), FatalCause> {
        let queue = &mut self.queues[ADMIN];
        queue.post(&self.dma, completion)?;
        if let Some(vector) = queue.interrupt(&self.dma)? {
            self.msix.raise(vector);
        }
        if completion.status() == Status::Internal {
            return Err(FatalCause::Firmware);
        }
        Ok(())
    }

    /// QUEUE_CREATE (abi §6.2). The queue's doorbells start from zero.
    fn queue_create(&mut self, command: &Submission) -> Status {
        let body: QueueCreateBody = command.body();
        let spec = QueueSpec {
            id: QueueId(body.queue.get()),
            depth: body.depth.get(),
            vector: body.vector.get(),
            sq: body.sq.get(),
            cq: body.cq.get(),
            notify: body.notify.get(),
        };
        if !(1..=self.queue_pairs).contains(&spec.id.0) || self.find(spec.id).is_some() {
            return Status::InvalidQueue;
        }
        if !spec.is_valid(self.queue_depth_max, self.msix.vectors()) {
            return Status::InvalidField;
        }
        if spec.check_memory(&self.dma).is_err() {
            return Status::DmaFault;
        }
        self.clear_doorbells(spec.id);
        self.queues.push(Queue::new(&spec));
        Status::Success
    }

    /// QUEUE_DELETE (abi §6.2). What the queue has published and not fetched completes as
    /// aborted first, as far as its completion ring has room and can be reached; the rest
    /// ends with the queue, which the completion of this command tells the host.
    fn queue_delete(&mut self, command: &Submission) -> Status {
        let body: QueueDeleteBody = command.body();
        let id = QueueId(body.queue.get());
        let Some(index) = self.find(id).filter(|_| !id.is_admin()) else {
            return Status::InvalidQueue;
        };
        let mut queue = self.queues.remove(index);
        // A ring out of reach or out of order is no reason to keep the queue, or to stop the
        // device: it is what the host may be deleting the queue for.
        let _ = queue.abort_all(&self.dma, &self.doorbells);
        if let Ok(Some(vector)) = queue.interrupt(&self.dma) {
            self.msix.raise(vector);
        }
        Status::Success
    }

    /// ABORT (abi §6.5). A command runs to its end once fetched, so that only one which is
    /// published and not yet fetched can still be aborted; it completes as such in its turn.
    fn abort(&mut self, command: &Submission) -> Result<Status, FatalCause> {
        let body: AbortBody = command.body();
        let id = QueueId(body.queue.get());
        let Some(index) = self.find(id).filter(|_| !id.is_admin()) else {
            return Ok(Status::InvalidQueue);
        };
        let found = self.queues[index].abort(&self.dma, RequestId(body.request.get()))?;
        Ok(if found {
            Status::Success
        } else {
            Status::NotFound
        })
    }

    fn find(&self, id: QueueId) -> Option<usize> {
        self.queues.iter().position(|q| q.id() == id)
    }
}
