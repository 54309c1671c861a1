-- Takes the next job (wire format 6.4).
--
-- KEYS  1-11 the queue
-- ARGV  1-3 header, 4 token, 5 lock in ms, 6 '1': only when nothing is active, 7 '1': tell when the line is empty
-- before: job at the taking end of wait   after: job in active, locked by the token, processedOn set
-- answers {0} nothing waits, {1} something is active, {2, id, field, value ...} taken, {3} look again
--
-- Ids without a job are dropped from the line instead of running as empty jobs, at most 1000 in one call.
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
if redis.call('EXISTS', q.pause_flag) == 1 then
  return {0}
end
for _ = 1, 1000 do
  local id = redis.call('LINDEX', q.wait, -1)
  if not id then
    if ARGV[7] == '1' then
      redis.call('PUBLISH', q.prefix .. 'drained', '')
    end
    return {0}
  end
  local job = q.prefix .. id
  if is_hash(job) then
    if ARGV[6] == '1' and redis.call('LLEN', q.active) > 0 then
      return {1}
    end
    redis.call('RPOPLPUSH', q.wait, q.active)
    redis.call('SET', job .. ':lock', ARGV[4], 'PX', ARGV[5])
    redis.call('SREM', q.stalled, id)
    redis.call('ZREM', q.priority, id)
    redis.call('HSET', job, 'processedOn', ARGV[3])
    redis.call('PUBLISH', q.prefix .. 'active@' .. q.publisher, id)
    local answer = redis.call('HGETALL', job)
    table.insert(answer, 1, id)
    table.insert(answer, 1, 2)
    return answer
  end
  redis.call('RPOP', q.wait)
  redis.call('ZREM', q.priority, id)
end
return {3}
