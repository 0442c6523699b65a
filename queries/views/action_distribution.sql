-- One row is one action in the rollout of one update, and how frequent it was.
-- column run_id VARCHAR - the run
-- column update BIGINT 1 PPO update
-- column progress DOUBLE 1 fraction of the training done; NULL: the total length is unknown
-- column action VARCHAR - the action
-- column n BIGINT 1 times it occurred; NULL: not measured
-- column fraction DOUBLE 1 n / number of all actions of the rollout; NULL: it has no actions
SELECT
    a.run_id,
    a.update,
    u.progress,
    a.action,
    a.n,
    a.n / nullif(sum(a.n) OVER (PARTITION BY a.run_id, a.update), 0) AS fraction
FROM (SELECT run_id, update, action, sum(n)::BIGINT AS n FROM action_counts GROUP BY ALL) AS a
LEFT JOIN (SELECT run_id, update, max(progress) AS progress FROM ppo_updates GROUP BY ALL) AS u USING (run_id, update)
