-- One row is one action, and its share of the actions taken in the rollout of an update.
-- column run_id VARCHAR - the run
-- column update BIGINT 1 PPO update
-- column progress DOUBLE 1 share of the training done; NULL: the length was not told
-- column action VARCHAR - the action
-- column n BIGINT 1 times it was taken; NULL: not measured
-- column fraction DOUBLE 1 n of the times any was taken; NULL: none was taken
SELECT
    a.run_id,
    a.update,
    u.progress,
    a.action,
    a.n,
    a.n / nullif(sum(a.n) OVER (PARTITION BY a.run_id, a.update), 0) AS fraction
FROM (SELECT run_id, update, action, sum(n)::BIGINT AS n FROM action_counts GROUP BY ALL) AS a
LEFT JOIN (SELECT run_id, update, max(progress) AS progress FROM ppo_updates GROUP BY ALL) AS u USING (run_id, update)
