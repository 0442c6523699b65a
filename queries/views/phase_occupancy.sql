-- One row is one phase of a run, and its part of the loop's time, of the update's time, or of the slots' epochs.
-- column run_id VARCHAR - the run
-- column kind VARCHAR - what is divided: `loop` (the training loop, by time), `ppo` (rollout and update, by time),
--     `stage` (stages of the modules, by epochs of occupied slots)
-- column phase VARCHAR - the phase, or the stage
-- column amount DOUBLE 1 seconds for `loop` and `ppo`, epochs for `stage`
-- column fraction DOUBLE 1 amount / sum over the run and kind; NULL: the sum is zero
WITH amounts AS (
    SELECT run_id, 'loop' AS kind, phase, sum(wall_ms) / 1000 AS amount FROM phase_profiles GROUP BY ALL
    UNION ALL
    SELECT run_id, 'stage', stage, count(*)::DOUBLE FROM slot_epochs WHERE stage IS NOT NULL GROUP BY ALL
    UNION ALL
    SELECT run_id, 'ppo', unnest(['rollout', 'update']), unnest([sum(rollout_s), sum(update_s)])
    FROM ppo_updates
    GROUP BY run_id
)
SELECT run_id, kind, phase, amount, amount / nullif(sum(amount) OVER (PARTITION BY run_id, kind), 0) AS fraction
FROM amounts
WHERE amount IS NOT NULL
