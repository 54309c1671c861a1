-- Removes a job that nobody runs (wire format 6.15).
--
-- KEYS  1-11 the queue, 12 job, 13 lock, 14 order to cancel
-- ARGV  1-3 header, 4 id
-- before: job in any state, not locked     after: no trace of it
-- answers {0}
local q = open_queue(1, ARGV[1], ARGV[2])
local id = ARGV[4]
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
local kind = redis.call('TYPE', KEYS[12]).ok
if kind ~= 'none' and kind ~= 'hash' then
  return {WRONG_TYPE, KEYS[12]}
end
if redis.call('EXISTS', KEYS[13]) == 1 then
  return {LOCKED}
end
local traces = 0
for _, list in ipairs({q.wait, q.paused, q.active}) do
  traces = traces + redis.call('LREM', list, 0, id)
end
for _, set in ipairs({q.delayed, q.completed, q.failed, q.priority}) do
  traces = traces + redis.call('ZREM', set, id)
end
redis.call('SREM', q.stalled, id)
redis.call('DEL', KEYS[14])
forget_limited(q, id)
if kind == 'hash' then
  local name = redis.call('HGET', KEYS[12], 'deid')
  if name then
    drop_debounce(q, ARGV[4], name)
  end
  forget(q.prefix, id)
elseif traces == 0 then
  return {MISSING}
end
return {0}
