-- One row is one finished episode and how it ended, with the progress of the training.
-- columns of episodes
-- column progress DOUBLE 1 fraction of the training done at its update; NULL: the total length is unknown
SELECT e.*, u.progress
FROM episodes AS e
LEFT JOIN (SELECT run_id, update, max(progress) AS progress FROM ppo_updates GROUP BY ALL) AS u USING (run_id, update)
