-- One row is one of the k transitions with the largest |log ratio|, with its ratio.
-- columns of ratio_exemplars
-- column ratio DOUBLE 1 exp(log_ratio): pi_new / pi_old, infinite where exp overflows; NULL: not measured
-- column progress DOUBLE 1 fraction of the training done at its update; NULL: the total length is unknown
SELECT
    e.*,
    CASE WHEN e.log_ratio > 709.7 AND NOT isnan(e.log_ratio) THEN 'infinity'::DOUBLE ELSE exp(e.log_ratio) END AS ratio,
    u.progress
FROM ratio_exemplars AS e
LEFT JOIN (SELECT run_id, update, max(progress) AS progress FROM ppo_updates GROUP BY ALL) AS u USING (run_id, update)
