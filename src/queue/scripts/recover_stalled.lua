-- Puts back the jobs of dead workers (wire format 6.12).
--
-- KEYS  1-11 the queue, 12 stalled-check
-- ARGV  1-3 header, 4 interval in ms, 5 how often a job may stall
-- before: ids in stalled whose lock is gone        after: they are taken next among those of their priority, or in failed
--         when they stalled too often; all that is active is in stalled until its lock is renewed
-- answers {0} somebody looked within the interval, {1, n, n requeued ids, failed ids ...}
--
-- A job may lack its hash or options, or a foreign key stand in its place: such an id leaves active and is not counted. A lock
-- or a stalled-check that never expires is nobody's: all programs set them with an expiry, so it would hold the job, or the
-- check, for ever. Of a longer list only the oldest are looked at, those most likely left behind: Redis serves nobody else
-- meanwhile.
local LOOK = 10000
local REASON = 'job stalled more than allowable limit'
-- Bull's event says it in other words than its hash.
local MESSAGE = 'job stalled more than maxStalledCount'
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
if redis.call('PTTL', KEYS[12]) >= 0 then
  return {0}
end
redis.call('SET', KEYS[12], ARGV[3], 'PX', ARGV[4])
local active, times = redis.call('LRANGE', q.active, -LOOK, -1), {}
for _, id in ipairs(active) do
  times[id] = (times[id] or 0) + 1
end
local requeued, failed, living, left = {}, {}, {}, {}
local seen = {}
for _, id in ipairs(active) do
  if not seen[id] then
    seen[id] = true
    if redis.call('SISMEMBER', q.stalled, id) == 0 or redis.call('PTTL', q.prefix .. id .. ':lock') >= 0 then
      table.insert(living, id)
    else
      table.insert(left, id)
    end
  end
end
-- From the end at which they are looked for, so that each is found at once.
for i = #left, 1, -1 do
  redis.call('LREM', q.active, -times[left[i]], left[i])
end
for _, id in ipairs(left) do
  local job = q.prefix .. id
  redis.call('DEL', job .. ':lock')
  if is_hash(job) then
    -- Whatever else stands there would never reach the limit.
    local count = number_of(redis.call('HGET', job, 'stalledCounter'), 0)
    count = (count > 0 and count or 0) + 1
    redis.call('HSET', job, 'stalledCounter', string.format('%.0f', count))
    if count > tonumber(ARGV[5]) then
      local keep, age = retention(job, 'removeOnFail')
      finish(q, q.failed, id, ARGV[3], 'failedReason', REASON, keep, age)
      redis.call('PUBLISH', q.prefix .. 'failed', '{"jobId":' .. cjson.encode(id) .. ', "val": "' .. MESSAGE .. '"}')
      table.insert(failed, id)
    else
      push_before_its_equals(q, id, number_of(redis.call('HGET', job, 'priority'), 0))
      redis.call('PUBLISH', q.prefix .. 'stalled@', id)
      table.insert(requeued, id)
    end
  end
end
redis.call('DEL', q.stalled)
for _, id in ipairs(living) do
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
