-- What makes the evidence of each run questionable or unusable.
-- param blocking BOOLEAN false list only what makes it unusable
SELECT run_id, confounder, key, blocking, updates, fraction, first_update, last_update, meaning
FROM run_confounders
WHERE blocking OR NOT $blocking
ORDER BY run_id, blocking DESC, updates DESC NULLS LAST, confounder, key
