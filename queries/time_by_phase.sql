-- Where the time went: phases of the training loop, rollout and update, stages of the modules.
-- param kind VARCHAR NULL `loop`, `ppo` or `stage`; all if not given
SELECT run_id, kind, phase, amount, fraction
FROM phase_occupancy
WHERE kind = coalesce($kind, kind)
ORDER BY run_id, kind, fraction DESC, phase
