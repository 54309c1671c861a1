-- Takes the next job (wire format 6.4).
--
-- KEYS  1-11 the queue
-- ARGV  1-3 header, 4 token, 5 lock in ms, 6 '1': only when nothing is active, 7 '1': tell when the line is empty
-- before: job at the taking end of wait   after: job in active, locked by the token, processedOn set
-- answers as `take_next`
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = is_wrong(q.wait, 'list') or is_wrong(q.active, 'list')
if wrong then
  return {WRONG_TYPE, wrong}
end
local answer = take_next(q, nil, ARGV[4], ARGV[5], ARGV[3], ARGV[6] == '1')
if answer[1] == 0 and ARGV[7] == '1' and redis.call('EXISTS', q.pause_flag) == 0 then
  redis.call('PUBLISH', q.prefix .. 'drained', '')
end
return answer
