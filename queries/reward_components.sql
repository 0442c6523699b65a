-- Which components make up the reward, and how they correlate with the episodes' returns and accuracies.
-- param at_least DOUBLE 0 smallest fraction of the reward's size that is listed
SELECT *
FROM reward_calibration
WHERE coalesce(size_fraction, 0) >= $at_least AND std > 0
ORDER BY run_id, size_fraction DESC NULLS LAST, component
