"""A job with its resubmissions, as a lab shows them, and the front door as a program reaches it."""
import http.client
import re
import urllib.error

from harness.lab import wait_for


def attempts(lab, job):
    """The job and its resubmissions, oldest first."""
    jobs = [j for j in lab.snapshot()["jobs"] if j["submission_id"] == job or j["resubmission_of"] == job]
    return sorted(jobs, key=lambda j: j["attempt"])


def epochs(lab, job):
    return [int(e) for e in re.findall(r"epoch (\d+)/\d+", "".join(lab.logs(j["submission_id"]) for j in attempts(lab, job)))]


def trains(lab, job, epoch):
    def does():
        try:
            return lab.job(job) and f"epoch {epoch}/" in lab.logs(job)
        except urllib.error.HTTPError:
            return False  # Ray does not have it yet

    wait_for(f"{job} trains", does, 90, every=0.3)


def ends(lab, job, status="SUCCEEDED", seconds=180):
    """Waits until nothing more happens to the job; returns its attempts."""
    def over():
        last = attempts(lab, job)[-1]
        return last["outcome"] and not last["resubmitted_as"] and attempts(lab, job)

    all_of_it = wait_for(f"{job} ends", over, seconds, every=0.5)
    assert all_of_it[-1]["status"] == status, all_of_it
    return all_of_it


def door(lab, method, path, body=None, headers=None, token=True):
    url = lab.link("Ray dashboard")
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=60)
    headers = {**(headers or {}), **({"Authorization": f"Bearer {lab.ray_token()}"} if token else {})}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")
