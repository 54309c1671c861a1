-- Locks a job that a blocking move brought from wait to active (wire format 6.4).
--
-- KEYS  1-6 the queue, 7 job, 8 lock, 9 paused
-- ARGV  1-3 header, 4 id, 5 token, 6 lock in ms
-- before: id in active, not locked    after: job locked by the token, processedOn set
-- answers {2, id, fields}, or {0}: there is no such job, somebody else has it, or the queue was paused meanwhile
local q = open_line(1, ARGV[1], ARGV[2])
local id = ARGV[4]
local wrong = is_wrong(q.active, 'list') or is_wrong(q.stalled, 'set') or is_wrong(KEYS[9], 'list')
if wrong then
  return {WRONG_TYPE, wrong}
end
if redis.call('EXISTS', KEYS[8]) == 1 or not redis.call('LPOS', q.active, id) then
  return {0}
end
if not is_hash(KEYS[7]) then
  redis.call('LREM', q.active, -1, id)
  redis.pcall('ZREM', q.priority, id)
  return {0}
end
if redis.call('EXISTS', q.pause_flag) == 1 then
  redis.call('LREM', q.active, -1, id)
  redis.call('RPUSH', KEYS[9], id)
  return {0}
end
redis.call('SREM', q.stalled, id)
redis.pcall('ZREM', q.priority, id)
begin_run(q, id, ARGV[5], ARGV[6], ARGV[3])
return {2, id, fields_of(KEYS[7])}
