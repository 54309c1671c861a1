-- Runs a finished job again (wire format 6.10).
--
-- KEYS  1-11 the queue, 12 job, 13 lock, 14 order to cancel
-- ARGV  1-3 header, 4 id
-- before: job in failed or completed, not locked     after: job in wait or paused, retriedOn set, attemptsMade kept
-- answers {0}
--
-- It goes where adding it would put it; Bull ignores its priority.
local q = open_queue(1, ARGV[1], ARGV[2])
local id = ARGV[4]
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
if not is_hash(KEYS[12]) then
  return {MISSING}
end
if redis.call('EXISTS', KEYS[13]) == 1 then
  return {LOCKED}
end
if redis.call('ZREM', q.failed, id) + redis.call('ZREM', q.completed, id) == 0 then
  return {NOT_FINISHED}
end
redis.call('DEL', KEYS[14])
redis.call('HSET', KEYS[12], 'retriedOn', ARGV[3])
push_retried(q, id)
announce_waiting(q, id)
return {0}
