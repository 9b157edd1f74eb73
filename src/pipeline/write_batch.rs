//! Decodes a batch and writes it: in one transaction, unless its messages have more events than one may have.

use super::committer::Ledger;
use crate::ledger::write::sequencer::CommitSlot;
use crate::ledger::write::writer::CommitError;
use crate::model::batch::Batch;
use crate::model::write_report::WriteReport;

impl Ledger {
    /// Writes a batch. If its messages have more rows than a transaction may have, it is written in parts of whole
    /// messages, one after the other, and each part moves the positions. After an error the earlier parts stay in the
    /// ledger, so the batch does not begin at the stored positions any more and is given up when it is written again.
    pub(super) async fn write(&self, batch: &Batch, slot: CommitSlot) -> Result<WriteReport, CommitError> {
        match self.decoder.decode(batch, self.max_rows).await {
            Ok(decoded) => self.writer.write(decoded, slot).await,
            Err(messages) => Box::pin(self.write_in_parts(batch.clone(), messages, slot)).await,
        }
    }

    /// `fitting`: how many of the first messages make a part.
    async fn write_in_parts(&self, batch: Batch, fitting: usize, slot: CommitSlot) -> Result<WriteReport, CommitError> {
        let (part, mut rest) = batch.split_at(fitting);
        let (part_slot, mut slot) = slot.split();
        let mut report = self.write_part(&part, part_slot).await?;
        loop {
            match self.decoder.decode(&rest, self.max_rows).await {
                Ok(decoded) => {
                    report += self.writer.write(decoded, slot).await?;
                    return Ok(report);
                }
                Err(fitting) => {
                    let (part, behind) = rest.split_at(fitting);
                    let (part_slot, slot_behind) = slot.split();
                    report += self.write_part(&part, part_slot).await?;
                    (rest, slot) = (behind, slot_behind);
                }
            }
        }
    }

    async fn write_part(&self, part: &Batch, slot: CommitSlot) -> Result<WriteReport, CommitError> {
        let decoded = self.decoder.decode(part, usize::MAX).await.expect("no batch has more rows");
        self.writer.write(decoded, slot).await
    }
}
