/* notify.h - tells the service manager how this process is: sd_notify(3)'s protocol, one datagram to $NOTIFY_SOCKET.
 *
 * Under systemd with Type=notify a unit counts as started at notify_ready(), and with WatchdogSec= it is restarted when
 * notify_beat() has not been called for so long. Without NOTIFY_SOCKET all of them do nothing. Errors are not told: there
 * is nobody to tell.
 */
#ifndef BASE_NOTIFY_H
#define BASE_NOTIFY_H

void notify_ready(void);    /* what it is for can be asked of it now */
void notify_stopping(void); /* it was told to stop, and is finishing */
void notify_beat(void);     /* its loop turns; from the loop itself, a few times a minute */

#endif
