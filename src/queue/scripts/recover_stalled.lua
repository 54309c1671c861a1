-- Puts back the jobs of dead workers (wire format 6.12).
--
-- KEYS  1-11 the queue, 12 stalled-check
-- ARGV  1-3 header, 4 interval in ms, 5 how often a job may stall
-- before: ids in stalled whose lock is gone        after: they are where they are taken next, or in failed when they
--         stalled too often; all that is active is in stalled until its lock is renewed
-- answers {0} somebody looked within the interval, {1, n, n requeued ids, failed ids ...}
--
-- A job may lack its hash or options, or a foreign key stand in its place: such an id leaves active and is not counted.
local REASON = 'job stalled more than allowable limit'
-- Bull's event says it in other words than its hash.
local MESSAGE = 'job stalled more than maxStalledCount'
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
if redis.call('EXISTS', KEYS[12]) == 1 then
  return {0}
end
redis.call('SET', KEYS[12], ARGV[3], 'PX', ARGV[4])
local requeued, failed = {}, {}
local suspects = redis.call('SMEMBERS', q.stalled)
redis.call('DEL', q.stalled)
for _, id in ipairs(suspects) do
  local job = q.prefix .. id
  if redis.call('EXISTS', job .. ':lock') == 0 and redis.call('LREM', q.active, 1, id) > 0 and is_hash(job) then
    local count = number_of(redis.call('HGET', job, 'stalledCounter'), 0) + 1
    redis.call('HSET', job, 'stalledCounter', string.format('%.0f', count))
    if count > tonumber(ARGV[5]) then
      local keep, age = retention(job, 'removeOnFail')
      finish(q, q.failed, id, ARGV[3], 'failedReason', REASON, keep, age)
      redis.call('PUBLISH', q.prefix .. 'failed', '{"jobId":' .. cjson.encode(id) .. ', "val": "' .. MESSAGE .. '"}')
      table.insert(failed, id)
    else
      redis.call('RPUSH', line_of(q), id)
      redis.call('PUBLISH', q.prefix .. 'stalled@', id)
      table.insert(requeued, id)
    end
  end
end
for _, id in ipairs(redis.call('LRANGE', q.active, 0, -1)) do
  redis.call('SADD', q.stalled, id)
end
local answer = {1, #requeued}
for _, id in ipairs(requeued) do
  table.insert(answer, id)
end
for _, id in ipairs(failed) do
  table.insert(answer, id)
end
return answer
