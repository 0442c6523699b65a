"""What a trainer of the benchmark calls: the right steps before a fault's onset, the fault's own from then on.

Around each step the witness notes what the step was given and what it made of it.
"""

from __future__ import annotations

from torch import Tensor

from faults.seams import Minibatch, RecurrentSeams, Rollout, Seams, Training
from faults.witness import Witness, right_loss


class Harness:
    """The steps of one training.

    Args:
        fault: the steps with the fault in them; `Seams` itself for a healthy training.
        onset: update whose rollout is the first with the fault.
    """

    def __init__(self, training: Training, fault: type[Seams], onset: int) -> None:
        self.training, self._onset = training, onset
        # A fault of a feed-forward training is one of a recurrent training too: what it does not replace is right.
        self._fault = _recurrent(fault)(training)
        self._right = RecurrentSeams(training)
        self.steps = self._right if fault.before_onset is None else _recurrent(fault.before_onset)(training)
        self.witness = Witness(training)
        self._epoch = 0
        training.random.manual_seed(training.seed + 77)

    @property
    def keeps_old_log_probs(self) -> bool:
        """Whether a trainer may look them up in its rollout."""
        return self._fault.keeps_old_log_probs

    def restarts_before(self, update: int) -> bool:
        """Whether the training is to be stopped now and resumed."""
        return self._fault.restarts and update == self._onset

    def begin(self, update: int) -> None:
        """Begin an update, before its rollout; the first before anything is recorded or reset."""
        if update == self.training.update:
            return
        self.training.update = update
        self.witness.begin(update)
        if update == self._onset:
            self.steps = self._fault
            self.steps.onset()
        self.witness.rollout_begins()
        self.steps.before_rollout()

    # --- the environment ---------------------------------------------------------------------------------------------

    def executed(self, actions: Tensor) -> Tensor:
        """Actions for the environments."""
        found = self.steps.executed(actions)
        self.witness.changed("action_change", actions, found)
        return found

    def observed(self, observations: Tensor) -> Tensor:
        """Observations for the policy."""
        found = self.steps.observed(observations)
        self.witness.changed("observation_change", observations, found)
        self.witness.observations(found)
        return found

    def rewarded(self, rewards: Tensor, dones: Tensor) -> Tensor:
        """Rewards for the trainer."""
        found = self.steps.rewarded(rewards, dones)
        self.witness.changed("reward_change", rewards, found)
        return found

    def timed_out(self, truncated: Tensor) -> Tensor:
        """Ends that were only time limits, as far as the trainer knows."""
        found = self.steps.timed_out(truncated)
        self.witness.row.timeouts += int(truncated.sum())
        self.witness.row.timeouts_unknown += int((truncated.bool() & ~found.bool()).sum())
        return found

    # --- rollout and update ------------------------------------------------------------------------------------------

    def advantages(self, rollout: Rollout) -> None:
        """Finish a rollout: write its `advantages` and `returns`."""
        before = {name: tensor.clone() for name, tensor in rollout.items()}
        self.steps.after_rollout(rollout)
        for name in ("actions", "log_probs", "values", "observations"):
            self.witness.changed("rollout_change", before[name], rollout[name])
        advantages, returns = self.steps.advantages(rollout)
        rollout["advantages"].copy_(advantages)
        rollout["returns"].copy_(returns)
        self.witness.rollout(rollout, self._right.advantages(rollout)[1])

    def begin_training(self) -> None:
        """Begin the epochs."""
        self._epoch = 0
        self.witness.update_begins()

    def begin_epoch(self, rollout: Rollout) -> None:
        """Begin an epoch."""
        self._epoch += 1
        before = rollout["log_probs"].clone() if not self.keeps_old_log_probs else rollout["log_probs"]
        self.steps.begin_epoch(rollout)
        self.witness.changed("old_log_prob_change", before, rollout["log_probs"])

    def learned_from(self, observations: Tensor) -> Tensor:
        """Observations of a minibatch."""
        found = self.steps.learned_from(observations)
        self.witness.changed("learned_observation_change", observations, found)
        return found

    def old_log_probs(self, batch: Minibatch) -> Minibatch:
        """The minibatch with the log-probabilities its ratio is relative to."""
        found = self.steps.old_log_probs(batch)
        self.witness.changed("old_log_prob_change", batch.old_log_probs, found)
        batch.old_log_probs = found
        return batch

    def train(self, batch: Minibatch, index: Tensor | None) -> None:
        """Loss, backward; the trainer clips, records and then calls `step`."""
        loss = self.steps.loss(batch)
        settings = self.training.settings
        right = right_loss(
            batch, settings.normalize_advantages, settings.clip_range, settings.value_coef, settings.entropy_coef
        )
        self.witness.minibatch(index, self._epoch, loss, right)
        self.steps.zero_grad()
        self.witness.left_over()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        self.steps.after_backward()
        self.witness.gradients()

    def step(self) -> None:
        """Change the weights."""
        self.steps.step()

    def end_update(self) -> None:
        """End an update."""
        self.steps.end_update()
        self.witness.end()


def _recurrent(seams: type[Seams]) -> type[RecurrentSeams]:
    """Steps for any trainer: what those of a feed-forward training do not replace is right for a recurrent one too."""
    if issubclass(RecurrentSeams, seams):
        return RecurrentSeams
    return seams if issubclass(seams, RecurrentSeams) else type(seams.__name__, (seams, RecurrentSeams), {})
