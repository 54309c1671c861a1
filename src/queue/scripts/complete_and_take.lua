-- Completes a job and takes the next one (wire format 6.6), which spares a busy worker half of its round trips.
--
-- KEYS  1-11 the queue, 12 job, 13 lock, 14 order to cancel
-- ARGV  1-3 header, 4 id, 5 token, 6 result as JSON, 7 message, 8 count and 9 age to keep, 10 token and 11 lock in ms of
--       the next run
-- before: job active, locked by the token
-- after:  job in completed (or gone, by its retention); the next one active, locked by the other token
-- answers as `take_next`; {0} as well when the next one cannot be taken for a key of the wrong type
--
-- What is read is read by the command that needs it, not by TYPE before it: each call counts here.
local q = open_queue(1, ARGV[1], ARGV[2])
local id = ARGV[4]
local head = redis.pcall('LINDEX', q.wait, -1)
local wrong = type(head) == 'table' and q.wait or is_wrong(q.completed, 'zset') or is_wrong(q.active, 'list')
  or is_wrong(q.stalled, 'set')
if wrong then
  return {WRONG_TYPE, wrong}
end
local code = ownership(KEYS[12], KEYS[13], ARGV[5])
if code < 0 then
  return {code}
end
code = leave_active(q, id, KEYS[13], KEYS[14])
if code < 0 then
  return {code}
end
finish(q, q.completed, id, ARGV[3], 'returnvalue', ARGV[6], tonumber(ARGV[8]), tonumber(ARGV[9]))
redis.call('PUBLISH', q.prefix .. 'completed', ARGV[7])
if not head then
  return {0}
end
local answer = take_next(q, head, ARGV[10], ARGV[11], ARGV[3], false)
return answer[1] < 0 and {0} or answer
