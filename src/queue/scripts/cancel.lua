-- Cancels a job that waits, orders to cancel one that runs.
--
-- KEYS  1-11 the queue, 12 job, 13 order to cancel (ours, not Bull's)
-- ARGV  1-3 header, 4 id, 5 who, 6 life of the order in ms, 7 channel of orders, 8 reason, 9 message
-- before: job not finished
-- after:  active: the order stands and is published, the run sees it when it renews its lock;
--         else: the job is in failed (or gone, by its retention)
-- answers {0} finished already, {1} ordered, {2} cancelled
local q = open_queue(1, ARGV[1], ARGV[2])
local id = ARGV[4]
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
if not is_hash(KEYS[12]) then
  return {MISSING}
end
if redis.call('ZSCORE', q.completed, id) or redis.call('ZSCORE', q.failed, id) then
  return {0}
end
if redis.call('LPOS', q.active, id) then
  redis.call('SET', KEYS[13], ARGV[5], 'PX', ARGV[6])
  redis.call('PUBLISH', ARGV[7], id)
  return {1}
end
redis.call('LREM', q.wait, 0, id)
redis.call('LREM', q.paused, 0, id)
redis.call('ZREM', q.delayed, id)
redis.call('ZREM', q.priority, id)
local keep, age = retention(KEYS[12], 'removeOnFail')
finish(q, q.failed, id, ARGV[3], 'failedReason', ARGV[8], keep, age)
redis.call('DEL', KEYS[13])
redis.call('PUBLISH', q.prefix .. 'failed', ARGV[9])
return {2}
