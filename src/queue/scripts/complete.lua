-- Completes a job and adds its successor, both or neither (wire format 6.6 and 6.1).
--
-- KEYS  1-11 the queue, 12 job, 13 lock, 14 order to cancel, then with a successor: 15-25 its queue
-- ARGV  1-3 header, 4 id, 5 token, 6 result as JSON, 7 message, 8 count and 9 age to keep, 10 minutes to count in,
--       with a successor: 11 prefix and 12 publisher of its queue, 13-22 the job (see `insert`)
-- before: job active, locked by the token
-- after:  job in completed with returnvalue and finishedOn (or gone, by its retention), successor in its line
-- answers {0} done, {1, id} done and successor added, {2, id} done and the successor's id was there already
local q = open_queue(1, ARGV[1], ARGV[2])
local id = ARGV[4]
local successor = ARGV[11] and open_queue(15, ARGV[11], ARGV[12])
local wrong = is_wrong(q.active, 'list') or is_wrong(q.stalled, 'set') or is_wrong(q.completed, 'zset') or successor and mistyped(successor)
if wrong then
  return {WRONG_TYPE, wrong}
end
local code = ownership(KEYS[12], KEYS[13], ARGV[5])
if code < 0 then
  return {code}
end
-- Before the first write here, since the successor's counter may hold no number.
local next_id, added
if successor and redis.call('LPOS', q.active, id) then
  if is_wrong_counter(successor) then
    return {WRONG_TYPE, successor.counter}
  end
  -- Without memory Redis refuses what takes some, unless the script has written something that takes none before.
  redis.call('SREM', q.stalled, id)
  next_id, added = insert(successor, 13)
  if not next_id then
    return {WRONG_TYPE, added}
  end
end
code = leave_active(q, id, KEYS[13], KEYS[14])
if code < 0 then
  return {code}
end
finish(q, q.completed, id, ARGV[3], 'returnvalue', ARGV[6], tonumber(ARGV[8]), tonumber(ARGV[9]))
count_end(q, 'completed', ARGV[3], tonumber(ARGV[10]))
redis.call('PUBLISH', q.prefix .. 'completed', ARGV[7])
if successor then
  return {added == 1 and 1 or 2, next_id}
end
return {0}
