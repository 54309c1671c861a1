-- Takes the next job (wire format 6.4).
--
-- KEYS  1-6 the queue
-- ARGV  1-3 header, 4 token, 5 lock in ms, 6 '1': only when nothing is active, 7 '1': tell when the line is empty
-- before: job at the taking end of wait   after: job in active, locked by the token, processedOn set
-- answers {2, id, fields}; {0}: nothing waits; {1}: something waits, but something is active and only one may be; {3}: look again
local q = open_line(1, ARGV[1], ARGV[2])
local wrong = is_wrong(q.wait, 'list') or is_wrong(q.active, 'list')
if wrong then
  return {WRONG_TYPE, wrong}
end
-- A foreign writer may put jobs into wait while the queue is paused.
if redis.call('EXISTS', q.pause_flag) == 1 then
  return {0}
end
if ARGV[6] == '1' and redis.call('LLEN', q.active) > 0 and redis.call('LLEN', q.wait) > 0 then
  return {1}
end
local taken, again, failed = take_next(q, {ARGV[4]}, ARGV[5], ARGV[3])
local id = taken[1]
if id then
  return {2, id, fields_of(q.prefix .. id)}
elseif again or failed then
  return failed or {3}
end
if ARGV[7] == '1' then
  redis.call('PUBLISH', q.prefix .. 'drained', '')
end
return {0}
